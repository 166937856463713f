"""Tests of the page: new figures replace old ones, everything else stays."""

import pytest

from benchmarks.page import BEGIN, END, with_figures

HEAD = "|  | measured | target |\n| --- | --- | --- |"


def figures(*ratios: str, **more: str) -> str:
    """Figures as in a report: ratios and their chart, sections."""
    rows = "\n".join(f"| {ratio} | 1.0 | 3 |" for ratio in ratios)
    texts = [f"## {title.replace('_', ' ')}{text}" for title, text in more.items()]
    parts = [f"## Ratios\n\n{HEAD}\n{rows}\n\n![the figures](benchmarks.png)", *texts]
    return "\n\n".join(parts)


def page(figures: str) -> str:
    return f"before\n{BEGIN}\n\n{figures}\n\n{END}\nafter\n"


def test_sections_take_the_place_of_their_like_and_others_stay() -> None:
    old = figures("ingest: a", Ingest=": files\n\n### old", Training_caches=": 10\n\nkept", Training=": x\n\nkept too")
    new = figures("ingest: b", Ingest=": more files\n\nnew", Predictions=": y\n\nnew too")
    found = with_figures(page(old), new, ["ingest", "predictions"])
    expected = figures(
        "ingest: b",
        Ingest=": more files\n\nnew",
        Training_caches=": 10\n\nkept",
        Training=": x\n\nkept too",
        Predictions=": y\n\nnew too",
    )
    assert found == page(expected)
    assert with_figures(found, new, ["ingest", "predictions"]) == found


def test_ratios_of_other_benchmarks_stay_and_those_of_this_one_do_not() -> None:
    old = figures("ingest: a", "training, PyTorch: a", "predictions, PyTorch: a")
    new = figures("promotion: a", "ingest: b", "ingest: c")
    expected = figures("ingest: b", "ingest: c", "training, PyTorch: a", "promotion: a")
    assert with_figures(page(old), new, ["ingest", "predictions", "promotion"]) == page(expected)


def test_a_page_without_its_markers_is_no_page() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        with_figures("no markers", figures(), [])
