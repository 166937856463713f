"""Which images: filters, as the gallery's URLs name them, and the images that match them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from image_assets.predictions.image_index import Index

State = Literal["current", "quarantined", "pending", "missing"]
Sort = Literal["name", "newest", "unsure", "sure", "large", "small", "label"]
# The choices of some filters, by their value in the URL: what the page shows, and the SQL. Every order ends with the
# file's number, so that ties keep their order from page to page.
SORTS: dict[Sort, tuple[str, str]] = {
    "name": ("name", "n"),
    "newest": ("newest first", "modification_time DESC NULLS LAST, n"),
    "unsure": ("least confident first", "probability ASC NULLS LAST, n"),
    "sure": ("most confident first", "probability DESC NULLS LAST, n"),
    "large": ("largest first", "pixels DESC NULLS LAST, n"),
    "small": ("smallest first", "pixels ASC NULLS LAST, n"),
    "label": ("label, then prediction", "label NULLS FIRST, predicted NULLS FIRST, n"),
}
SPLITS = {"training": "training", "validation": "validation", "test": "test", "none": "no split"}
RESULTS = {
    "mistakes": ("mistakes", "predicted <> label"),
    "right": ("correct predictions", "predicted = label"),
    "abstained": ("abstained", "abstained"),
    "unlike": ("unlike the training images", "unlike_training"),
    "fault": ("failed predictions", "fault IS NOT NULL"),
    "none": ("not predicted yet", "NOT has_prediction"),
}
DISAGREEMENTS = {
    "versions": ("versions disagree", "versions_disagree"),
    "frameworks": ("frameworks disagree", "frameworks_disagree"),
}
LABEL_STATUSES = {"corrected": ("corrected by hand", "corrected"), "none": ("no label", "label IS NULL")}
Row = dict[str, Any]

# All images with the predictions of one version. Its label is called `predicted`: `label` is the image's own.
IMAGES_WITH_PREDICTIONS = """
FROM (
    SELECT images.*, chosen.n IS NOT NULL AS has_prediction, chosen.label AS predicted, chosen.probability,
        chosen.fault, chosen.abstained, chosen.most_probable_label, chosen.unlike_training
    FROM images LEFT JOIN (SELECT * FROM predictions WHERE version = ?) chosen ON chosen.n = images.n
) images_with_predictions
"""


TEXTS = ("text", "label", "predicted", "attribute")  # a folder, and so a label, may be called like a space


class InvalidInput(ValueError):
    """A URL parameter or form field whose value is not allowed."""


class Filters(BaseModel):
    """The images that a page shows, and their order. Each field is a URL parameter; its default filters nothing.

    The aliases are the names in URLs, which must not change: people bookmark pages.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    text: Annotated[str, Field(max_length=500)] = ""
    label: str = ""
    label_status: Annotated[Literal["", "corrected", "none"], Field(alias="labelled")] = ""
    predicted: str = ""
    version: Annotated[int | None, Field(ge=1, le=10**9)] = None
    result: Annotated[
        Literal["", "mistakes", "right", "abstained", "unlike", "fault", "none"], Field(alias="answer")
    ] = ""
    disagreement: Annotated[str, Field(alias="apart", pattern=r"^(|versions|frameworks|[1-9]\d{0,8})$")] = ""
    min_percent: Annotated[float | None, Field(alias="least", ge=0, le=100)] = None
    max_percent: Annotated[float | None, Field(alias="most", ge=0, le=100)] = None
    split: Literal["", "training", "validation", "test", "none"] = ""
    state: State = "current"
    reason: str = ""
    format: str = ""
    attribute: Annotated[str, Field(max_length=500, pattern=r"^(|[^=]+=.*)$")] = ""  # a column of the label table
    outliers: Annotated[bool, Field(alias="drift"), BeforeValidator(lambda value: value in (True, "1"))] = False
    sort: Sort = "name"
    page: Annotated[int, Field(ge=1, le=10**9)] = 1

    @model_validator(mode="before")
    @classmethod
    def _with_state(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Current files have no reason: with a reason, the files are quarantined unless another state is given."""
        current = values.get("state", "current") == "current"
        return values | {"state": "quarantined"} if current and values.get("reason") else values

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Filters":
        """The filters of a URL's parameters.

        Raises:
            InvalidInput: A value is not allowed; the message names the parameter.
        """
        try:
            given = {name: value for name, value in parameters.items() if value.strip() or (value and name in TEXTS)}
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{first['msg'][0].lower()}{first['msg'][1:]}"
            raise InvalidInput(f"{first['loc'][0]} is {str(first['input'])[:80]!r}: {problem}") from error

    def url(self, **changes: object) -> str:
        """The query of a URL with these filters, without those at their default.

        Args:
            changes: URL parameters to set to other values. The page becomes the first unless it is one of them.
        """
        defaults = Filters().model_dump(by_alias=True)
        values = {**self.model_dump(by_alias=True), "page": 1, **changes}
        changed = {name: value for name, value in values.items() if value not in (defaults[name], None)}
        for name, value in changed.items():
            if value is True or isinstance(value, float) and value == int(value):
                changed[name] = int(value)
        return f"?{urlencode(changed)}"

    def to_sql(self) -> tuple[str, list[Any]]:
        """The condition on `IMAGES_WITH_PREDICTIONS`, and the values of its placeholders."""
        clauses: list[tuple[str, list[Any]]] = [("state = ?", [self.state])]
        equal = {"label": self.label, "predicted": self.predicted, "reason": self.reason, "format": self.format}
        clauses += [(f"{name} = ?", [value]) for name, value in equal.items() if value]
        if self.text:
            clauses.append(("contains(lower_path, lower(nfc_normalize(?)))", [self.text]))
        if self.label_status:
            clauses.append((LABEL_STATUSES[self.label_status][1], []))
        if self.split:
            clauses.append(("split IS NULL", []) if self.split == "none" else ("split = ?", [self.split]))
        if self.result:
            clauses.append((RESULTS[self.result][1], []))
        if self.disagreement in DISAGREEMENTS:
            clauses.append((DISAGREEMENTS[self.disagreement][1], []))
        elif self.disagreement:
            other = "n IN (SELECT n FROM predictions WHERE version = ? AND label <> predicted)"
            clauses.append((other, [int(self.disagreement)]))
        if self.min_percent is not None:
            clauses.append(("probability >= ?::FLOAT", [self.min_percent / 100]))
        if self.max_percent is not None:
            clauses.append(("probability <= ?::FLOAT", [self.max_percent / 100]))
        if self.attribute:
            name, _, value = self.attribute.partition("=")
            clauses.append(("attributes[?] = ?", [name.strip(), value.strip()]))
        if self.outliers:
            clauses.append(("traits IS NOT NULL", []))
        return " AND ".join(clause for clause, _ in clauses), [value for _, values in clauses for value in values]

    def chips(self) -> list[tuple[str, str]]:
        """Every active filter: a description, and the URL without it."""
        texts = {
            "text": f"path contains “{self.text}”",
            "label": f"label {self.label}",
            "labelled": LABEL_STATUSES[self.label_status][0] if self.label_status else "",
            "predicted": f"predicted {self.predicted}",
            "version": f"version {self.version}",
            "answer": RESULTS[self.result][0] if self.result else "",
            "apart": DISAGREEMENTS[self.disagreement][0]
            if self.disagreement in DISAGREEMENTS
            else f"version {self.disagreement} disagrees",
            "least": f"at least {self.min_percent or 0:g}%",
            "most": f"at most {self.max_percent or 0:g}%",
            "split": SPLITS.get(self.split, ""),
            "state": self.state,
            "reason": f"reason {self.reason}",
            "attribute": self.attribute,
            "format": self.format,
            "drift": "unlike the training images",
        }
        values, defaults = self.model_dump(by_alias=True), Filters().model_dump(by_alias=True)
        implied = defaults | {"state": Filters(reason=self.reason).state}
        return [
            (text, self.url(**{name: defaults[name]})) for name, text in texts.items() if values[name] != implied[name]
        ]


def shown_version(index: Index, filters: Filters) -> int | None:
    """The version whose predictions are shown: the chosen one, else the serving one, else the newest one."""
    return filters.version or index.serving or index.value("SELECT max(version) FROM predictions")


def read_images(index: Index, filters: Filters, start: int, count: int) -> list[Row]:
    """Up to `count` matching images, from the position `start` (counted from 0) in the order of the filters."""
    where, values = filters.to_sql()
    version = shown_version(index, filters)
    order = SORTS[filters.sort][1]
    # First the numbers, then the rows: sorting the images with all their columns takes three times as long.
    sort = f"SELECT n {IMAGES_WITH_PREDICTIONS} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
    numbers = [row["n"] for row in index.rows(sort, [version, *values, count, start])]
    rows = index.rows(f"SELECT * {IMAGES_WITH_PREDICTIONS} WHERE n IN (SELECT unnest(?))", [version, numbers])
    by_number = {row["n"]: row for row in rows}
    return [by_number[number] for number in numbers]
