"""The questions that pages ask the index: a page of images, one image, what there is to choose from."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gallery.filters import SORTS, Filters
from gallery.index import Index

PAGE_IMAGES = 60
Row = dict[str, Any]

# `said` is what the chosen version answered; its label is `predicted`, so that it is no other label.
CHOSEN = """
FROM (
    SELECT images.*, said.n AS asked, said.label AS predicted, said.probability, said.fault
    FROM images LEFT JOIN (SELECT * FROM answers WHERE version = ?) said ON said.n = images.n
) said
"""


@dataclass(frozen=True)
class Page:
    """Some images of all that were asked for."""

    images: list[Row]
    count: int
    number: int

    @property
    def pages(self) -> int:
        """How many pages there are; one at least."""
        return max(1, -(-self.count // PAGE_IMAGES))

    @property
    def first(self) -> int:
        """The place of the first image among all, from 1; 0 where there are none."""
        return (self.number - 1) * PAGE_IMAGES + 1 if self.images else 0


def version_of(index: Index, filters: Filters) -> int | None:
    """The version whose answers are shown: the one asked for, the one that serves, or the newest that answered."""
    return filters.version or index.serving or index.value("SELECT max(version) FROM answers")


def read_page(index: Index, filters: Filters) -> Page:
    """The page that is asked for; the last one where there are fewer."""
    where, values = filters.to_sql()
    version = version_of(index, filters)
    count = index.value(f"SELECT count(*) {CHOSEN} WHERE {where}", [version, *values])
    number = min(filters.page, max(1, -(-count // PAGE_IMAGES)))
    return Page(read_images(index, filters, (number - 1) * PAGE_IMAGES, PAGE_IMAGES), count, number)


def read_images(index: Index, filters: Filters, start: int, count: int) -> list[Row]:
    """So many of the images that are asked for, from a place on."""
    where, values = filters.to_sql()
    version = version_of(index, filters)
    order = SORTS[filters.sort][1]
    # First which, then all of these: sorting every column of all images takes three times as long.
    which = f"SELECT n {CHOSEN} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
    numbers = [row["n"] for row in index.rows(which, [version, *values, count, start])]
    rows = index.rows(f"SELECT * {CHOSEN} WHERE n IN (SELECT unnest(?))", [version, numbers])
    by_number = {row["n"]: row for row in rows}
    return [by_number[number] for number in numbers]


def read_image(index: Index, path: str) -> Row | None:
    """Everything of the file with this path; None where the ledger has none."""
    found = index.rows("SELECT * FROM images WHERE path = ?", [path])
    return found[0] if found else None


def read_answers(index: Index, image: Row) -> list[Row]:
    """What every version said of the image, the newest version first."""
    return index.rows("SELECT * FROM answers WHERE n = ? ORDER BY version DESC", [image["n"]])


def former_contents(index: Index, image: Row) -> list[Row]:
    """What the file held before, the newest first: images that could be read."""
    query = "SELECT * FROM featured WHERE path = ? AND image_id IS DISTINCT FROM ? ORDER BY modification_time DESC"
    return index.rows(query, [image["path"], image["image_id"]])


def same_content(index: Index, image: Row) -> list[Row]:
    """Other files with the very same bytes."""
    return index.rows(
        "SELECT path, state, label FROM images WHERE image_id = ? AND path <> ? ORDER BY n LIMIT 20",
        [image["image_id"], image["path"]],
    )


def corrections_of(index: Index, image: Row) -> list[Row]:
    """What people said of the image, the newest first."""
    query = "SELECT * FROM corrections WHERE path = ? AND image_id = ? ORDER BY corrected_at DESC"
    return index.rows(query, [image["path"], image["image_id"]])


def known_labels(index: Index) -> list[str]:
    """Every label that an image has, or a version gives."""
    query = "SELECT label FROM images WHERE label IS NOT NULL UNION SELECT label FROM answers WHERE label IS NOT NULL"
    return [row["label"] for row in index.rows(f"{query} ORDER BY label")]


def by_path(index: Index, image_ids: list[str]) -> dict[str, Row]:
    """For each content that a current file has, one of these files."""
    query = "SELECT * FROM images WHERE state = 'current' AND list_contains(?, image_id) ORDER BY n DESC"
    return {row["image_id"]: row for row in index.rows(query, [image_ids])}


def counted(index: Index, column: str) -> list[tuple[str, int]]:
    """The values of a column of all files, and how many files have each."""
    query = f"SELECT {column} AS value, count(*) AS files FROM images WHERE value IS NOT NULL GROUP BY value ORDER BY 1"
    return [(row["value"], row["files"]) for row in index.rows(query)]


def read_choices(index: Index) -> dict[str, list[tuple[Any, Any]]]:
    """What can be chosen in each filter, and how many files or answers there are of it; each version's framework."""
    answered = index.rows(
        "SELECT version, any_value(framework) AS framework, count(*) AS answers FROM answers "
        "GROUP BY version ORDER BY version DESC"
    )
    predicted = "SELECT label, count(DISTINCT n) AS files FROM answers WHERE label IS NOT NULL GROUP BY 1 ORDER BY 1"
    return {
        **{name: counted(index, name) for name in ("label", "state", "reason", "format")},
        "version": [(row["version"], row["answers"]) for row in answered],
        "framework": [(row["version"], row["framework"] or "unknown framework") for row in answered],
        "predicted": [(row["label"], row["files"]) for row in index.rows(predicted)],
    }


def to_address(filters: Filters, path: str, place: int | None = None) -> str:
    """The address of an image's page, with its place among those that were asked for."""
    said = {"path": path} if place is None else {"path": path, "at": place}
    return f"/image{filters.changed()}&{urlencode(said)}".replace("?&", "?")
