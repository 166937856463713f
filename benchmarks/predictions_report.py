"""The figures of predictions as tables: everybody's images a second, and what happens when versions change places."""

from statistics import median
from typing import Any

from benchmarks.contest import OURS, RECIPE
from benchmarks.contest_report import own_parts
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import Spread, good, peak_megabytes, rates

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
# What ends at each moment, in the order of the moments.
PARTS = {
    "registry": "the registry moves the version",
    "sensor": "the sensor `stage_changes` asks for a run",
    "process": "the run's process starts",
    "resources": "Spark starts",
    "first": "`image_predictions`: to the first new rows",
    "last": "`image_predictions`: to the last ones",
    "current": "`current_predictions`",
}


def predictions_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Ours against the recipe in each framework, and against the best of the others with the same weights."""
    rows = []
    for framework, runs in found["runs"].items():
        rate = {name: spread.median for name, spread in rates({"count": found["count"], "runs": runs}).items()}
        said = f"predictions, {FRAMEWORKS[framework]}: images a second"
        if OURS not in rate:
            continue
        ours = rate.pop(OURS)
        if recipe := rate.pop(RECIPE, None):
            rows.append((f"{said}, times the recipe's", f"{ours / recipe:.1f}", "3"))
        if rate:
            best = max(rate, key=lambda name: rate[name])
            rows.append((f"{said}, times the best peer's ({best})", f"{ours / rate[best]:.2f}", "1.1"))
    return rows


def predictions_section(found: dict[str, Any]) -> str:
    """All that the page says of predictions."""
    size = found["bytes"] / found["count"] / 1000
    repeats = max(len(runs) for by_name in found["runs"].values() for runs in by_name.values())
    title = "## Predictions: images to labels and probabilities, in a table"
    said = f"{found['count']:,} photographs of {size:.0f} KB on average, {repeats} runs each."
    parts = [own_parts({"runs": found["runs"]["torch"]})] if good(found["runs"]["torch"].get(OURS, [])) else []
    return "\n\n".join(part for part in [title, said, predictions_table(found), *parts] if part)


def predictions_table(found: dict[str, Any]) -> str:
    """Everybody: images a second, what a start costs, processor time, memory; or why there is no figure."""
    first = f"process start to the first {found['first']}, s"
    head = ["", "images a second", "times the recipe", first, "in all, s", "CPU s / 1,000", "peak MB"]
    rows = []
    for framework, by_name in found["runs"].items():
        rate = rates({"count": found["count"], "runs": by_name})
        for name, runs in by_name.items():
            said = f"{name}, {FRAMEWORKS[framework]}"
            if name not in rate:
                rows.append([said, to_cell(runs[0]["error"]), *[""] * 5])
                continue
            counted = good(runs)
            rows.append(
                [
                    said,
                    f"{rate[name]:,.0f}",
                    f"{rate[name].median / rate[RECIPE].median:.1f}" if RECIPE in rate else "",
                    f"{Spread.of([run['answer']['first_seconds'] for run in counted]):.1f}",
                    f"{Spread.of([run['seconds'] for run in counted]):.1f}",
                    f"{median(run['cpu_seconds'] for run in counted) / found['count'] * 1000:.1f}",
                    f"{peak_megabytes(runs):,.0f}",
                ]
            )
    return markdown(head, rows)


def moments(found: dict[str, Any], move: str, size: str) -> dict[str, list[float]]:
    """The moments of a move in every run that counts, in seconds from the promotion on."""
    runs = [run["answer"][move]["moments"] for run in good(found["runs"][size])]
    return {name: [of[name] for of in runs] for name in PARTS if runs and all(name in of for of in runs)}


def promotion_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """How long a rollback takes to be seen, and how that grows."""
    seconds = {
        int(size): median(ended["current"])
        for size in found["runs"]
        if (ended := moments(found, "rollback", size)).get("current")
    }
    if len(seconds) < 2:
        return []
    small, large = min(seconds), max(seconds)
    said = f"promotion: seconds until a rollback is seen, {large:,} images"
    grown = f"{seconds[large] / seconds[small]:.2f}"
    return [(said, f"{seconds[large]:.1f}", "less than 30"), (f"{said}, times those of {small:,}", grown, "")]


def promotion_section(found: dict[str, Any]) -> str:
    """All that the page says of promotions."""
    title = "## Promotion: another version serves, and the former one again"
    loaded = [run["answer"]["load"]["seconds"] for run in good(found["loaded"])]
    by_itself = (
        f"A process that does nothing but load the new version takes {Spread.of(loaded):.1f} s." if loaded else ""
    )
    failed = [
        f"{int(size):,} images: {to_cell(run['error'])}"
        for size, runs in found["runs"].items()
        for run in runs
        if run["error"]
    ]
    tables = [parts_table(found, "promotion"), by_itself, parts_table(found, "rollback"), *failed]
    return "\n\n".join(part for part in [title, *tables] if part)


def parts_table(found: dict[str, Any], move: str) -> str:
    """A move, part by part, by the number of images."""
    by_size = {size: moments(found, move, size) for size in found["runs"] if good(found["runs"][size])}
    if not by_size:
        return ""
    scored = {size: good(found["runs"][size])[0]["answer"][move]["scored"] for size in by_size}
    rows = [[f"**{move}, in all**", *(f"{Spread.of(of['current']):.1f}" for of in by_size.values())]]
    rows.append(["images scored", *(f"{scored[size]:,}" for size in by_size)])
    if all("first" in of for of in by_size.values()):
        rows.append(["to the first new rows", *(f"{Spread.of(of['first']):.1f}" for of in by_size.values())])
    for name, part in PARTS.items():
        if all(name in of for of in by_size.values()):
            rows.append([part, *(f"{part_seconds(of, name):.1f}" for of in by_size.values())])
    return markdown([f"{move}, s", *(f"{int(size):,} images" for size in by_size)], rows)


def part_seconds(ended: dict[str, list[float]], name: str) -> float:
    """How long the part took that ended at this moment: since the moment before."""
    names = list(ended)
    before = ended[names[names.index(name) - 1]] if name != names[0] else [0.0] * len(ended[name])
    return median(end - start for end, start in zip(ended[name], before, strict=True))
