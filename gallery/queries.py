"""The queries of the pages."""

from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode

from image_assets.predictions.image_filters import (
    IMAGES_WITH_PREDICTIONS,
    Filters,
    Row,
    State,
    read_images,
    shown_version,
)
from image_assets.predictions.image_index import Index

PAGE_IMAGES = 60
LISTED_ATTRIBUTES = 500


@dataclass(frozen=True)
class Page:
    """Some of the images that match the filters."""

    images: list[Row]
    count: int  # of all matching images
    number: int
    size: int = PAGE_IMAGES  # of a full page

    @property
    def pages(self) -> int:
        """The number of pages, at least one."""
        return max(1, -(-self.count // self.size))

    @property
    def first(self) -> int:
        """The position of the page's first image among all matching images, counted from 1; 0 if there are none."""
        return (self.number - 1) * self.size + 1 if self.images else 0


def read_page(index: Index, filters: Filters, size: int = PAGE_IMAGES) -> Page:
    """The page of the filters, or the last page if there are fewer."""
    where, values = filters.to_sql()
    version = shown_version(index, filters)
    count = index.value(f"SELECT count(*) {IMAGES_WITH_PREDICTIONS} WHERE {where}", [version, *values])
    number = min(filters.page, max(1, -(-count // size)))
    return Page(read_images(index, filters, (number - 1) * size, size), count, number, size)


def read_image(index: Index, path: str) -> Row | None:
    """The file with this path; None if the ledger has no such file."""
    rows = index.rows("SELECT * FROM images WHERE path = ?", [path])
    return rows[0] if rows else None


def predictions_of(index: Index, image: Row) -> list[Row]:
    """The predictions of all versions, newest version first."""
    return index.rows("SELECT * FROM predictions WHERE n = ? ORDER BY version DESC", [image["n"]])


def former_contents(index: Index, image: Row) -> list[Row]:
    """The images that the file contained before, newest first."""
    query = "SELECT * FROM featured WHERE path = ? AND image_id IS DISTINCT FROM ? ORDER BY modification_time DESC"
    return index.rows(query, [image["path"], image["image_id"]])


def exact_copies(index: Index, image: Row) -> list[Row]:
    """Other files with the same bytes, at most 20."""
    return index.rows(
        "SELECT path, state, label FROM images WHERE image_id = ? AND path <> ? ORDER BY n LIMIT 20",
        [image["image_id"], image["path"]],
    )


def corrections_of(index: Index, image: Row) -> list[Row]:
    """The label corrections of the image, newest first."""
    query = "SELECT * FROM corrections WHERE path = ? AND image_id = ? ORDER BY corrected_at DESC"
    return index.rows(query, [image["path"], image["image_id"]])


def all_labels(index: Index) -> list[str]:
    """The labels of all images and predictions."""
    query = (
        "SELECT label FROM images WHERE label IS NOT NULL UNION SELECT label FROM predictions WHERE label IS NOT NULL"
    )
    return [row["label"] for row in index.rows(f"{query} ORDER BY label")]


def current_images(index: Index, image_ids: list[str]) -> dict[str, Row]:
    """One current file per image_id, the first by path; without image_ids that no current file has."""
    query = "SELECT * FROM images WHERE state = 'current' AND image_id IN (SELECT unnest(?)) ORDER BY n DESC"
    return {row["image_id"]: row for row in index.rows(query, [image_ids])}


def value_counts(index: Index, column: str, state: State) -> list[tuple[str, int]]:
    """The values of a column, with the number of files in this state that have each."""
    query = (
        f"SELECT {column} AS value, count(*) FILTER (state = ?) AS files FROM images WHERE value IS NOT NULL "
        "GROUP BY value ORDER BY 1"
    )
    return [(row["value"], row["files"]) for row in index.rows(query, [state])]


def read_choices(index: Index, version: int | None, state: State) -> dict[str, list[tuple[Any, Any]]]:
    """The values to choose from in each filter, with their number of files or predictions; each version's framework.

    Args:
        index: The index.
        version: The version whose predictions are counted.
        state: The state of the files that are counted. With `current`, reasons are counted among quarantined ones,
            because choosing one shows these.
    """
    versions = index.rows(
        "SELECT version, any_value(framework) AS framework, count(*) AS predictions FROM predictions "
        "GROUP BY version ORDER BY version DESC"
    )
    predicted = (
        "SELECT predictions.label, count(*) FILTER (version = ? AND state = ?) AS files FROM predictions "
        "JOIN files USING (n) WHERE predictions.label IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    attributes = (
        "SELECT key || '=' || value AS attribute, count(*) FILTER (state = ?) AS files FROM (SELECT state, "
        "unnest(map_entries(attributes), recursive := true) FROM images) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
    )
    files = dict.fromkeys(get_args(State), 0)
    files |= {row["state"]: row["files"] for row in index.rows("SELECT state, count(*) AS files FROM files GROUP BY 1")}
    return {
        **{name: value_counts(index, name, state) for name in ("label", "format")},
        "reason": value_counts(index, "reason", "quarantined" if state == "current" else state),
        "state": [*files.items()],
        "version": [(row["version"], row["predictions"]) for row in versions],
        "framework": [(row["version"], row["framework"] or "unknown framework") for row in versions],
        "predicted": [(row["label"], row["files"]) for row in index.rows(predicted, [version, state])],
        "attribute": [(row["attribute"], row["files"]) for row in index.rows(attributes, [state, LISTED_ATTRIBUTES])],
    }


def image_url(filters: Filters, path: str, position: int | None = None) -> str:
    """The URL of an image's page; with its position among the matching images, the page links to the next and previous.

    Args:
        filters: The filters that the image was found with.
        path: The image's path.
        position: Counted from 1.
    """
    parameters = {"path": path} if position is None else {"path": path, "at": position}
    return f"/image{filters.url()}&{urlencode(parameters)}".replace("?&", "?")
