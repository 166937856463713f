"""What the page of images shows."""

from functools import lru_cache, partial
from typing import Any

from gallery.filters import ANSWERS, APART, LABELLED, SORTS, SPLITS, Filters
from gallery.index import Index
from gallery.queries import Page, read_choices, read_page, to_address, version_of

choices_of = lru_cache(maxsize=1)(read_choices)
Option = tuple[Any, str]  # a filter's value, and what it is called


def images_page(index: Index, filters: Filters) -> dict[str, Any]:
    """The values of the template `images.html`."""
    page = read_page(index, filters)
    version = version_of(index, filters)
    return {
        "index": index,
        "filters": filters,
        "page": page,
        "jumps": jumps(page, filters),
        "total": index.value("SELECT count(*) FROM files WHERE state = ?", [filters.state]),
        "version": version,
        "framework": dict(choices_of(index)["framework"]).get(version),
        "options": options(index),
        "address": partial(to_address, filters),
    }


def options(index: Index) -> dict[str, list[Option]]:
    """What can be chosen in each filter."""
    found = choices_of(index)
    frameworks = dict(found["framework"])
    counted = ("label", "predicted", "format", "state", "reason")
    return {
        **{name: [(value, f"{value} ({files:,})") for value, files in found[name]] for name in counted},
        "version": [(version, f"{version}, {frameworks[version]} ({said:,})") for version, said in found["version"]],
        "apart": [
            *((name, words) for name, (words, _) in APART.items()),
            *((version, f"from version {version}") for version, _ in found["version"]),
        ],
        "answer": [(name, words) for name, (words, _) in ANSWERS.items()],
        "labelled": [(name, words) for name, (words, _) in LABELLED.items()],
        "split": [*SPLITS.items()],
        "sort": [(name, words) for name, (words, _) in SORTS.items()],
    }


def jumps(page: Page, filters: Filters) -> dict[str, str | None]:
    """The addresses of the first, previous, next and last page; None where that is this one or there is none."""
    numbers = {"first": 1, "previous": page.number - 1, "next": page.number + 1, "last": page.pages}
    return {
        name: filters.changed(page=number) if 1 <= number <= page.pages and number != page.number else None
        for name, number in numbers.items()
    }
