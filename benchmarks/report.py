"""All results as Markdown tables: the ratios first, then the figures behind them."""

import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import psutil

from benchmarks.caches import rows_of
from benchmarks.contest import FORMER, OURS, RECIPE
from benchmarks.contest_report import WORTH_SHOWING, contest_table, project_parts, total_ratio
from benchmarks.engines import engine_ratios, engines_section
from benchmarks.gallery import gallery_section
from benchmarks.growth import growth_section
from benchmarks.loader_report import loader_ratios, loader_section
from benchmarks.markdown import markdown
from benchmarks.measurement import CORES
from benchmarks.peers.environments import PEERS
from benchmarks.predictions_report import (
    predictions_ratios,
    predictions_section,
    promotion_ratios,
    promotion_section,
)
from benchmarks.results import (
    Spread,
    extrapolated,
    good,
    parts_by_size,
    peak_megabytes,
    rates,
    slope,
    total_seconds,
    work_seconds,
)
from benchmarks.training_report import (
    accuracy_section,
    processes_ratios,
    processes_section,
    training_ratios,
    training_section,
)

TITLES = {
    "ingest": "Ingest: files to `raw_images` and the ledger",
    "featured": "Features: `raw_images` to `featured_images`",
    "grayscale": "Grayscale: `featured_images` to `grayscale_images`",
}


def ratios(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The page's first table: what is compared, the measured ratio, the target."""
    rows = []
    for benchmark, least, least_of_peers in (("ingest", "3", "1.2"), ("grayscale", "5", "1.3"), ("featured", "", "")):
        if benchmark in results and OURS in (rate := rates(results[benchmark])):
            ours = rate.pop(OURS).median
            if recipe := rate.pop(RECIPE, None):
                rows.append((f"{benchmark}: images/s, relative to the recipe", f"{ours / recipe.median:.1f}", least))
            if former := rate.pop(FORMER, None):
                rows.append((f"{benchmark}: images/s, relative to {FORMER}", f"{ours / former.median:.2f}", ""))
            if rate:
                best = max(rate, key=lambda name: rate[name].median)
                compared = f"{benchmark}: images/s, relative to the best peer ({best})"
                rows.append((compared, f"{ours / rate[best].median:.2f}", least_of_peers))
                rows.append(total_ratio(benchmark, results[benchmark]["runs"], list(rate), least_of_peers))
    more = {
        "following": following_ratios,
        "loader": loader_ratios,
        "engines": engine_ratios,
        "training": training_ratios,
        "processes": processes_ratios,
        "predictions": predictions_ratios,
        "promotion": promotion_ratios,
    }
    for benchmark, ratios_of in more.items():
        if benchmark in results:
            rows += ratios_of(results[benchmark])
    return rows


def following_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """How the cost of new files grows with the tables, compared with rebuilding the tables."""
    seconds = {int(size): work_seconds(runs).median for size, runs in found["runs"].items() if good(runs)}
    if len(seconds) < 2:
        return []
    smallest, largest = min(seconds), max(seconds)
    recipe = {int(size): work_seconds(runs).median for size, runs in found["recipe"].items() if good(runs)}
    grown = f"following: seconds for {found['new']} files into {largest:,} images, relative to {smallest:,}"
    rows = [(grown, f"{seconds[largest] / seconds[smallest]:.2f}", "at most 1.3")]
    if former := good(found.get("former", {}).get(str(largest), [])):
        earlier = f"following: the time of {FORMER} for {largest:,} images, relative to ours"
        rows.append((earlier, f"{work_seconds(former).median / seconds[largest]:.2f}", ""))
    if len(recipe) == 2:
        rebuilt = f"following: the recipe's time to rebuild {largest:,} images (from {max(recipe):,}), relative to ours"
        rows.append((rebuilt, f"{extrapolated(recipe, largest) / seconds[largest]:.0f}", "45"))
        total = {int(size): total_seconds(runs).median for size, runs in found["recipe"].items()}
        ours = total_seconds(found["runs"][str(largest)]).median
        rows.append((f"{rebuilt}, in total time", f"{extrapolated(total, largest) / ours:.0f}", "45"))
    return rows


def following_tables(found: dict[str, Any]) -> str:
    """The whole run, its steps and parts, and its memory, by the size of the tables."""
    sizes = [int(size) for size, runs in found["runs"].items() if good(runs)]
    head = ["", *(f"into {size:,}" for size in sizes), "s per 100,000 more"]
    runs = {size: found["runs"][str(size)] for size in sizes}
    whole = {size: work_seconds(runs[size]) for size in sizes}
    middle = {size: spread.median for size, spread in whole.items()}
    rows = [["**whole run, s**", *(f"{whole[size]:.1f}" for size in sizes), f"{slope(middle):+.1f}"]]
    total = {size: total_seconds(runs[size]) for size in sizes}
    by_total = {size: spread.median for size, spread in total.items()}
    rows.append(["total with start and stop, s", *(f"{total[size]:.1f}" for size in sizes), f"{slope(by_total):+.1f}"])
    former = {size: good(found.get("former", {}).get(str(size), [])) for size in sizes}
    if any(former.values()):
        times = [f"{work_seconds(former[size]):.1f}" if former[size] else "" for size in sizes]
        rows.append([f"{FORMER}, s", *times, ""])
    tables = [markdown(head, rows)]
    for kind, title in (("steps", "step or check, s"), ("parts", "part, s")):
        shown = {name: by for name, by in parts_by_size(found, kind).items() if max(by.values()) >= WORTH_SHOWING}
        by_cost = sorted(shown, key=lambda name: -shown[name][max(sizes)])
        cells = [
            [f"`{name}`", *(f"{shown[name][size]:.1f}" for size in sizes), f"{slope(shown[name]):+.1f}"]
            for name in by_cost
        ]
        if cells:
            tables.append(markdown([title, *head[1:]], cells))
    memory = [
        [name, *(f"{peak_megabytes(runs[size], role):,.0f}" for size in sizes)]
        for role, name in {"driver": "driver", "java": "java", "workers": "workers", "together": "total"}.items()
    ]
    tables.append(markdown(["peak memory, MB", *head[1:-1]], memory))
    recipe = [
        [f"rebuild and predict {int(size):,} images", f"{work_seconds(runs):.1f} s", f"{total_seconds(runs):.1f} s"]
        for size, runs in found["recipe"].items()
        if good(runs)
    ]
    tables.append(markdown(["common recipe", "work", "total"], recipe))
    return "\n\n".join(tables)


def sensor_table(found: dict[str, Any]) -> str:
    """Milliseconds of a tick and the size of its cursor, by the number of files."""
    head = ["files", "no new files, ms", f"{found['new']} new files, ms", "first tick, ms", "cursor, bytes"]
    rows = []
    for size, runs in found["runs"].items():
        answers = [run["answer"] for run in good(runs)]
        if answers:
            quiet, new = (Spread.of([tick for one in answers for tick in one[kind]]) for kind in ("quiet", "new"))
            first = Spread.of([one["first"] for one in answers])
            cursor = max(one["cursor_bytes"] for one in answers)
            rows.append([f"{int(size):,}", f"{quiet:,.0f}", f"{new:,.0f}", f"{first.median:,.0f}", f"{cursor}"])
    return markdown(head, rows)


def cache_table(found: dict[str, Any]) -> str:
    """Size and speed of a cache, by its content."""
    head = [
        "content",
        "KB per image",
        "write time, s",
        "images/s read, 1 worker",
        "2 workers",
        "mean difference, of 255",
    ]
    return markdown(head, rows_of(found))


def conditions() -> str:
    """The hardware and software of a measurement, to be saved with its results."""
    names = (
        "pyspark",
        "delta-spark",
        "dagster",
        "pyarrow",
        "pillow",
        "simplejpeg",
        "cykooz-resizer",
        "isal",
        "petastorm",
        "torch",
        "tensorflow",
    )
    ours = ", ".join(f"{name} {version(name)}" for name in names)
    peers = ", ".join(dict.fromkeys(pins[0].replace("==", " ") for pins in PEERS.values()))
    memory = psutil.virtual_memory().total / 1024**3
    return (
        f"Measured on {CORES} cores ({platform.machine()}) with {memory:.0f} GiB of memory; "
        f"Python {platform.python_version()}, {ours}, {peers}."
    )


def contest_section(benchmark: str, found: dict[str, Any]) -> str:
    """The section on a benchmark in which all contestants do the same work."""
    size, repeats = found["bytes"] / found["count"] / 1000, max(len(runs) for runs in found["runs"].values())
    scope = f"{found['count']:,} photographs of {size:.0f} KB on average; runs of each contestant: {repeats}."
    parts = [f"## {TITLES[benchmark]}", scope, contest_table(found), project_parts(found)]
    return "\n\n".join(part for part in parts if part)


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    **{benchmark: partial(contest_section, benchmark) for benchmark in TITLES},
    "following": lambda found: f"## Following: {found['new']} new files\n\n{following_tables(found)}",
    "growth": growth_section,
    "sensor": lambda found: f"## The sensor `new_images`\n\n{sensor_table(found)}",
    "caches": lambda found: f"## Training caches: {found['count']:,} photographs\n\n{cache_table(found)}",
    "loader": loader_section,
    "engines": engines_section,
    "training": training_section,
    "accuracy": accuracy_section,
    "processes": processes_section,
    "gallery": gallery_section,
    "predictions": predictions_section,
    "promotion": promotion_section,
}


def report(results: dict[str, dict[str, Any]]) -> str:
    """Everything between the page's markers. Each section ends with what it was measured on."""
    parts = ["## Ratios", markdown(["", "measured", "target"], ratios(results)), "![the figures](benchmarks.png)"]
    for benchmark, section in SECTIONS.items():
        if (found := results.get(benchmark)) and (text := section(found)):
            parts += [text, found.get("conditions", "")]
    return "\n\n".join(part for part in parts if part)
