"""The page of figures: what was found anew takes the place of what was there, the rest stays as it was."""

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
RATIOS, CONDITIONS = "Ratios", "Measured on"  # the first section and the last one
RULE = "| --- | --- | --- |"


def with_figures(page: str, figures: str, benchmarks: Collection[str]) -> str:
    """The page with what these benchmarks found; ValueError where it has no place for it."""
    before, found, rest = page.partition(BEGIN)
    old, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}: put them where the figures belong")
    kept, new = sections(old), sections(figures)
    kept.pop(CONDITIONS, None)
    if RATIOS in kept and RATIOS in new:
        new[RATIOS] = with_kept_rows(new[RATIOS], kept[RATIOS], benchmarks)
    together = "\n\n".join({**kept, **new}.values())
    return f"{before}{BEGIN}\n\n{together}\n\n{END}{after}"


def sections(figures: str) -> dict[str, str]:
    """The sections by what their titles say before a colon, behind which sizes may differ."""
    texts = [text.strip() for text in re.split(r"^(?=## )", figures, flags=re.MULTILINE) if text.strip()]
    return {text.splitlines()[0].removeprefix("## ").split(":")[0]: text for text in texts}


def with_kept_rows(new: str, old: str, benchmarks: Collection[str]) -> str:
    """The new table of ratios, with the rows of the old one that are of other benchmarks."""
    before = {name: [] if name in benchmarks else rows for name, rows in rows_by_benchmark(old).items()}
    rows = [row for of in {**before, **rows_by_benchmark(new)}.values() for row in of]
    head, _, tail = new.partition(RULE)
    after = [line for line in tail.splitlines()[1:] if not line.startswith("| ")]
    return head + "\n".join([RULE, *rows, *after])


def rows_by_benchmark(ratios: str) -> dict[str, list[str]]:
    """The rows of the table of ratios by their first word, which names the benchmark."""
    rows: dict[str, list[str]] = {}
    for row in ratios.partition(RULE)[2].splitlines():
        if row.startswith("| "):
            rows.setdefault(re.split("[:,]", row.removeprefix("| "))[0], []).append(row)
    return rows


def write_page(page: Path = PAGE) -> str:
    """Put what every benchmark found last into the page; its picture is drawn anew where all of it was found here."""
    results = read_results()
    figures = report(results)
    page.write_text(with_figures(page.read_text(), figures, results))
    if results.keys() >= set(PANELS):
        draw(results, PICTURE)
    return figures
