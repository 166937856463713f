"""Updates the results page: new figures replace the old ones, everything else stays."""

import re
from collections.abc import Collection
from pathlib import Path

from benchmarks.figure import PANELS, draw
from benchmarks.measurement import ROOT
from benchmarks.report import report
from benchmarks.results import read_results

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = PAGE.with_suffix(".png")
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
RATIOS = "Ratios"  # the first section
RULE = "| --- | --- | --- |"


def with_figures(page: str, figures: str, benchmarks: Collection[str]) -> str:
    """The page with the results of these benchmarks. Raises ValueError if the page lacks the markers."""
    before, found, rest = page.partition(BEGIN)
    old, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}: put them where the figures belong")
    current, new = sections(old), sections(figures)
    if RATIOS in current and RATIOS in new:
        new[RATIOS] = with_kept_rows(new[RATIOS], current[RATIOS], benchmarks)
    together = "\n\n".join({**current, **new}.values())
    return f"{before}{BEGIN}\n\n{together}\n\n{END}{after}"


def sections(figures: str) -> dict[str, str]:
    """The sections by their titles up to the colon, after which sizes may differ."""
    texts = [text.strip() for text in re.split(r"^(?=## )", figures, flags=re.MULTILINE) if text.strip()]
    return {text.splitlines()[0].removeprefix("## ").split(":")[0]: text for text in texts}


def with_kept_rows(new: str, old: str, benchmarks: Collection[str]) -> str:
    """The new table of ratios, with the old rows of all other benchmarks."""
    before = {name: [] if name in benchmarks else rows for name, rows in rows_by_benchmark(old).items()}
    rows = [row for of in {**before, **rows_by_benchmark(new)}.values() for row in of]
    head, _, tail = new.partition(RULE)
    after = [line for line in tail.splitlines()[1:] if not line.startswith("| ")]
    return head + "\n".join([RULE, *rows, *after])


def rows_by_benchmark(ratios: str) -> dict[str, list[str]]:
    """The rows of the table of ratios by the benchmark they start with."""
    rows: dict[str, list[str]] = {}
    for row in ratios.partition(RULE)[2].splitlines():
        if row.startswith("| "):
            rows.setdefault(re.split("[:,]", row.removeprefix("| "))[0], []).append(row)
    return rows


def write_page(page: Path = PAGE) -> str:
    """Write the latest results into the page. The chart is redrawn only if all its panels have results."""
    results = read_results()
    figures = report(results)
    page.write_text(with_figures(page.read_text(), figures, results))
    if results.keys() >= set(PANELS):
        draw(results, PICTURE)
    return figures
