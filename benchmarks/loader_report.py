"""Loader results as a table: two epochs, their cost, and the limits of our own loader."""

from typing import Any

from benchmarks.feeding import BATCH_IMAGES, SIDE_PIXELS
from benchmarks.loader import LIMITS, LOADERS, PROJECT
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import Spread, good, peak_megabytes, work_seconds

FIRST, SECOND = 0, 1


def epoch_rates(found: dict[str, Any], epoch: int) -> dict[str, Spread]:
    """Images per second in one epoch, for every loader that finished."""
    taken = {name: [run["answer"]["epochs"][epoch] for run in good(runs)] for name, runs in found["runs"].items()}
    return {
        name: Spread.of([of["images"] / of["seconds"] for of in epochs]) for name, epochs in taken.items() if epochs
    }


def epoch_milliseconds(runs: list[dict], epoch: int) -> float:
    """CPU milliseconds per image, over all processes."""
    epochs = [run["answer"]["epochs"][epoch] for run in good(runs)]
    return Spread.of([1000 * of["cpu_seconds"] / of["images"] for of in epochs]).median


def loader_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Each of our caches relative to the best other loader, for each epoch."""
    rows = []
    own = [of.name for of in LOADERS if of.module == PROJECT]
    others = [of.name for of in LOADERS if of.module != PROJECT]
    for epoch, ordinal, aim in ((FIRST, "first", "1.2"), (SECOND, "second", "5")):
        rate = {name: spread.median for name, spread in epoch_rates(found, epoch).items()}
        peers = {name: rate[name] for name in others if name in rate}
        if peers:
            best = max(peers, key=lambda name: peers[name])
            for name in (name for name in own if name in rate):
                compared = f"loader, {ordinal} epoch, {name}: images/s, relative to the best other loader ({best})"
                rows.append((compared, f"{rate[name] / peers[best]:.2f}", aim))
    return rows


def loader_section(found: dict[str, Any]) -> str:
    """The page's section on loaders."""
    size = found["bytes"] / found["count"] / 1000
    title = f"## Loader: batches of {BATCH_IMAGES} images of {SIDE_PIXELS} x {SIDE_PIXELS}, two epochs"
    return f"{title}\n\n{found['count']:,} photographs of {size:.0f} KB on average.\n\n{loader_table(found)}"


def loader_table(found: dict[str, Any]) -> str:
    """One row per loader, then the limits of our own: both epochs, preparation, CPU time, memory."""
    head = ["", "first epoch, images/s", "second epoch, images/s", "preparation, s", "CPU ms per image", "peak MB"]
    first, second = epoch_rates(found, FIRST), epoch_rates(found, SECOND)
    rows = []
    for name, runs in found["runs"].items():
        if name not in first:
            rows.append([name, to_cell(runs[0]["error"]), *[""] * 4])
            continue
        prepared = good(found["preparations"].get(name, []))
        costs = " and ".join(f"{epoch_milliseconds(runs, epoch):.2f}" for epoch in (FIRST, SECOND))
        rows.append(
            [
                name,
                f"{first[name]:,.0f}",
                f"{second[name]:,.0f}",
                f"{work_seconds(prepared):.1f}" if prepared else "none",
                costs,
                f"{peak_megabytes(runs):,.0f}",
            ]
        )
    limits = [first[of.name].median for of in LIMITS if of.name in first]
    if len(limits) == len(LIMITS):
        rows.append(["both limits, one after the other", f"{1 / sum(1 / rate for rate in limits):,.0f}", *[""] * 4])
    return markdown(head, rows)
