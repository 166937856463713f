"""Results of predictions as tables, and of promotions and rollbacks."""

from statistics import median
from typing import Any

from benchmarks.contest import FORMER, OURS, RECIPE
from benchmarks.contest_report import project_parts, total_ratio
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import Spread, good, peak_megabytes, rates, total_seconds
from image_assets.models.frameworks import FRAMEWORKS

# The part that ends at each moment, in chronological order.
PARTS = {
    "registry": "the registry changes the stage",
    "sensor": "the sensor `stage_changes` launches a run",
    "process": "the run's process starts",
    "resources": "Spark starts",
    "first": "`image_predictions`: until the first new rows",
    "last": "`image_predictions`: until the last new rows",
    "current": "`current_predictions`",
}


def predictions_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Ours relative to the recipe in each framework, and relative to the best peer with the same weights."""
    rows = []
    for framework, runs in found["runs"].items():
        rate = {name: spread.median for name, spread in rates({"count": found["count"], "runs": runs}).items()}
        compared = f"predictions, {FRAMEWORKS[framework].title}: images/s, relative to"
        if OURS not in rate:
            continue
        ours = rate.pop(OURS)
        if recipe := rate.pop(RECIPE, None):
            rows.append((f"{compared} the recipe", f"{ours / recipe:.1f}", "3"))
        if former := rate.pop(FORMER, None):
            rows.append((f"{compared} {FORMER}", f"{ours / former:.2f}", ""))
        if rate:
            best = max(rate, key=lambda name: rate[name])
            rows.append((f"{compared} the best peer ({best})", f"{ours / rate[best]:.2f}", "1.1"))
            rows.append(total_ratio(f"predictions, {FRAMEWORKS[framework].title}", runs, list(rate), "1.1"))
    return rows


def predictions_section(found: dict[str, Any]) -> str:
    """The page's section on predictions."""
    size = found["bytes"] / found["count"] / 1000
    repeats = max(len(runs) for by_name in found["runs"].values() for runs in by_name.values())
    title = "## Predictions: from images to a table of labels and probabilities"
    scope = f"{found['count']:,} photographs of {size:.0f} KB on average; runs of each contestant: {repeats}."
    parts = [project_parts({"runs": found["runs"]["torch"]})] if good(found["runs"]["torch"].get(OURS, [])) else []
    return "\n\n".join(part for part in [title, scope, predictions_table(found), *parts] if part)


def predictions_table(found: dict[str, Any]) -> str:
    """One row per contestant: rate, cost of a cold start, CPU time and memory, or why it has no result."""
    first = f"process start to the first {found['first']} predictions, s"
    head = ["", "images/s", "relative to the recipe", first, "total, s", "CPU s / 1,000", "peak MB"]
    rows = []
    for framework, by_name in found["runs"].items():
        rate = rates({"count": found["count"], "runs": by_name})
        for name, runs in by_name.items():
            title = f"{name}, {FRAMEWORKS[framework].title}"
            if name not in rate:
                rows.append([title, to_cell(runs[0]["error"]), *[""] * 5])
                continue
            counted = good(runs)
            rows.append(
                [
                    title,
                    f"{rate[name]:,.0f}",
                    f"{rate[name].median / rate[RECIPE].median:.1f}" if RECIPE in rate else "",
                    f"{Spread.of([run['answer']['first_seconds'] for run in counted]):.1f}",
                    f"{total_seconds(runs):.1f}",
                    f"{median(run['cpu_seconds'] for run in counted) / found['count'] * 1000:.1f}",
                    f"{peak_megabytes(runs):,.0f}",
                ]
            )
    return markdown(head, rows)


def moments(found: dict[str, Any], move: str, size: str) -> dict[str, list[float]]:
    """The moments of a move in all valid runs, in seconds since the promotion."""
    runs = [run["answer"][move]["moments"] for run in good(found["runs"][size])]
    return {name: [of[name] for of in runs] for name in PARTS if runs and all(name in of for of in runs)}


def promotion_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Seconds until a rollback is visible, and how they grow with the number of images."""
    seconds = {
        int(size): median(ended["current"])
        for size in found["runs"]
        if (ended := moments(found, "rollback", size)).get("current")
    }
    if len(seconds) < 2:
        return []
    small, large = min(seconds), max(seconds)
    compared = f"promotion: seconds until a rollback is visible, {large:,} images"
    grown = f"{seconds[large] / seconds[small]:.2f}"
    return [(compared, f"{seconds[large]:.1f}", "less than 30"), (f"{compared}, relative to {small:,}", grown, "")]


def promotion_section(found: dict[str, Any]) -> str:
    """The page's section on promotions."""
    title = "## Promotion: switch to another version, then roll back"
    loaded = [run["answer"]["load"]["seconds"] for run in good(found["loaded"])]
    loading = f"A process that only loads the new version takes {Spread.of(loaded):.1f} s." if loaded else ""
    failed = [
        f"{int(size):,} images: {to_cell(run['error'])}"
        for size, runs in found["runs"].items()
        for run in runs
        if run["error"]
    ]
    tables = [parts_table(found, "promotion"), loading, parts_table(found, "rollback"), *failed]
    return "\n\n".join(part for part in [title, *tables] if part)


def parts_table(found: dict[str, Any], move: str) -> str:
    """The parts of a move, by the number of images."""
    by_size = {size: moments(found, move, size) for size in found["runs"] if good(found["runs"][size])}
    if not by_size:
        return ""
    scored = {size: good(found["runs"][size])[0]["answer"][move]["scored"] for size in by_size}
    rows = [[f"**{move}, total**", *(f"{Spread.of(of['current']):.1f}" for of in by_size.values())]]
    rows.append(["images scored", *(f"{scored[size]:,}" for size in by_size)])
    if all("first" in of for of in by_size.values()):
        rows.append(["until the first new rows", *(f"{Spread.of(of['first']):.1f}" for of in by_size.values())])
    for name, part in PARTS.items():
        if all(name in of for of in by_size.values()):
            rows.append([part, *(f"{part_seconds(of, name):.1f}" for of in by_size.values())])
    return markdown([f"{move}, s", *(f"{int(size):,} images" for size in by_size)], rows)


def part_seconds(ended: dict[str, list[float]], name: str) -> float:
    """The median seconds of the part that ended at this moment."""
    names = list(ended)
    before = ended[names[names.index(name) - 1]] if name != names[0] else [0.0] * len(ended[name])
    return median(end - start for end, start in zip(ended[name], before, strict=True))
