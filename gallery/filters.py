"""Which images are asked for, as the address of a page says it: read, turned into SQL, into words, into addresses."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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
