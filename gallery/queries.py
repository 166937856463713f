"""Filters as addresses name them, and the questions that pages ask the index: a page of images, one image, choices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gallery.index import Index

State = Literal["current", "quarantined", "pending", "missing"]
Sort = Literal["name", "newest", "unsure", "sure", "large", "small", "label"]
# By what the images are sorted: in words, in SQL. The number breaks ties, so that pages never overlap.
SORTS: dict[Sort, tuple[str, str]] = {
    "name": ("name", "n"),
    "newest": ("newest file first", "modification_time DESC NULLS LAST, n"),
    "unsure": ("least sure first", "probability ASC NULLS LAST, n"),
    "sure": ("surest first", "probability DESC NULLS LAST, n"),
    "large": ("largest first", "pixels DESC NULLS LAST, n"),
    "small": ("smallest first", "pixels ASC NULLS LAST, n"),
    "label": ("label, then prediction", "label NULLS FIRST, predicted NULLS FIRST, n"),
}
SPLITS = {"training": "training", "validation": "validation", "test": "test", "none": "in no split"}
ANSWERS = {
    "mistakes": ("mistakes", "predicted <> label"),
    "right": ("right answers", "predicted = label"),
    "fault": ("no answer", "fault IS NOT NULL"),
    "none": ("not asked yet", "asked IS NULL"),
}
APART = {
    "versions": ("any two versions disagree", "versions_apart"),
    "frameworks": ("frameworks disagree", "frameworks_apart"),
}
LABELLED = {"corrected": ("corrected by a person", "corrected"), "none": ("without a label", "label IS NULL")}
PAGE_IMAGES = 60
Row = dict[str, Any]

# `said` is what the chosen version answered; its label is `predicted`, so that it is no other label.
CHOSEN = """
FROM (
    SELECT images.*, said.n AS asked, said.label AS predicted, said.probability, said.fault
    FROM images LEFT JOIN (SELECT * FROM answers WHERE version = ?) said ON said.n = images.n
) said
"""


class WrongFilter(ValueError):
    """An address that asks for what no image can be."""


class Filters(BaseModel):
    """What a page shows. Every field is a parameter of its address; one that is not there filters nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: Annotated[str, Field(max_length=500)] = ""
    label: str = ""
    labelled: Literal["", "corrected", "none"] = ""
    predicted: str = ""
    version: Annotated[int | None, Field(ge=1, le=10**9)] = None
    answer: Literal["", "mistakes", "right", "fault", "none"] = ""
    apart: Annotated[str, Field(pattern=r"^(|versions|frameworks|[1-9]\d{0,8})$")] = ""
    least: Annotated[float | None, Field(ge=0, le=100)] = None
    most: Annotated[float | None, Field(ge=0, le=100)] = None
    split: Literal["", "training", "validation", "test", "none"] = ""
    state: State = "current"
    reason: str = ""
    format: str = ""
    drift: Annotated[bool, BeforeValidator(lambda said: said in (True, "1"))] = False
    sort: Sort = "name"
    page: Annotated[int, Field(ge=1, le=10**9)] = 1

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Filters":
        """The filters of an address; WrongFilter says which parameter is wrong."""
        try:
            return cls.model_validate({name: said for name, said in parameters.items() if said.strip()})
        except ValidationError as error:
            first = error.errors()[0]
            said = f"{first['loc'][0]} is {str(first['input'])[:80]!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
            raise WrongFilter(said) from error

    def changed(self, **other: object) -> str:
        """The address of a page with other filters, its first page where none is named; without what is not set."""
        said = {"page": 1} | other
        values = {**self.model_dump(), **said}
        default = type(self)().model_dump()
        kept = {name: value for name, value in values.items() if value != default[name] and value is not None}
        whole = {
            name for name, value in kept.items() if value is True or isinstance(value, float) and value == int(value)
        }
        kept = {name: int(value) if name in whole else value for name, value in kept.items()}
        return f"?{urlencode(kept)}" if kept else "?"

    def to_sql(self) -> tuple[str, list[Any]]:
        """The condition and its values; `said` is what the version answered."""
        found: list[tuple[str, list[Any]]] = [("state = ?", [self.state])]
        equal = {"label": self.label, "predicted": self.predicted, "reason": self.reason, "format": self.format}
        found += [(f"{name} = ?", [value]) for name, value in equal.items() if value]
        if self.text:
            found.append(("contains(searched, lower(?))", [self.text]))
        if self.labelled:
            found.append((LABELLED[self.labelled][1], []))
        if self.split:
            found.append(("split IS NULL", []) if self.split == "none" else ("split = ?", [self.split]))
        if self.answer:
            found.append((ANSWERS[self.answer][1], []))
        if self.apart in APART:
            found.append((APART[self.apart][1], []))
        elif self.apart:
            other = "n IN (SELECT n FROM answers WHERE version = ? AND label <> predicted)"
            found.append((other, [int(self.apart)]))
        if self.least is not None:
            found.append(("probability >= ?::FLOAT", [self.least / 100]))
        if self.most is not None:
            found.append(("probability <= ?::FLOAT", [self.most / 100]))
        if self.drift:
            found.append(("traits IS NOT NULL", []))
        return " AND ".join(clause for clause, _ in found), [value for _, values in found for value in values]

    def chips(self) -> list[tuple[str, str]]:
        """Every filter that is set: in words, and the address without it."""
        words = {
            "text": f"path has “{self.text}”",
            "label": f"label {self.label}",
            "labelled": LABELLED[self.labelled][0] if self.labelled else "",
            "predicted": f"predicted {self.predicted}",
            "version": f"version {self.version}",
            "answer": ANSWERS[self.answer][0] if self.answer else "",
            "apart": APART[self.apart][0] if self.apart in APART else f"version {self.apart} disagrees",
            "least": f"{self.least or 0:g} % or more",
            "most": f"{self.most or 0:g} % or less",
            "split": SPLITS.get(self.split, ""),
            "state": self.state,
            "reason": f"reason {self.reason}",
            "format": self.format,
            "drift": "unlike the training images",
        }
        default = type(self)().model_dump()
        return [
            (text, self.changed(**{name: default[name]}))
            for name, text in words.items()
            if getattr(self, name) != default[name]
        ]


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
