"""What the pages show: the page of images, the page of one image, values as people read them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import pyarrow.compute as pc

from gallery.index import Index, to_hash_text
from gallery.neighbours import SHOWN, KeptEmbeddings, look_alikes
from gallery.queries import (
    ANSWERS,
    APART,
    LABELLED,
    PAGE_IMAGES,
    SORTS,
    SPLITS,
    Filters,
    Page,
    Row,
    WrongFilter,
    by_path,
    corrections_of,
    former_contents,
    known_labels,
    read_answers,
    read_choices,
    read_image,
    read_images,
    read_page,
    same_content,
    to_address,
    version_of,
)
from image_assets.models.lineage import table_versions
from image_assets.schemas import IMAGE_PREDICTIONS, REPLAYED_FILES
from resources.delta.thin_tables import ThinTables
from resources.mlflow.model_registry import ModelVersion

SHOWN_LABELS = 12  # in the table of probabilities
UNITS = ("bytes", "KB", "MB", "GB")
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


def image_page(
    index: Index, thin_tables: ThinTables, embeddings: KeptEmbeddings, said: Mapping[str, str]
) -> dict[str, Any] | None:
    """The values of the template `image.html`; None where the ledger has no such file."""
    image = read_image(index, said.get("path", ""))
    if image is None:
        return None
    filters = Filters.read({name: value for name, value in said.items() if name != "path"})
    answers = read_answers(index, image)
    return {
        "index": index,
        "to_address": partial(to_address, Filters()),
        "image": image,
        "hash": to_hash_text(image["perceptual_hash"]),
        "corrections": corrections_of(index, image),
        "labels": known_labels(index),
        "answers": answers,
        "probabilities": probabilities(thin_tables, image, index.models) if answers else None,
        "trained_on": {version: trained_on(model) for version, model in index.models.items()},
        "former": former_contents(index, image),
        "same": same_content(index, image),
        "replays": replays(thin_tables, image),
        "alike": look_alikes(index, image),
        **near_by_embedding(index, embeddings, image),
        **beside(index, filters, image, place_of(said)),
    }


def place_of(said: Mapping[str, str]) -> int:
    """The image's place among those that were asked for, from 1; 0 where none is said."""
    place = said.get("at") or "0"
    if not place.isdecimal() or len(place) > 9:
        raise WrongFilter(f"at is {place[:80]!r}: expected a number, such as 1")
    return int(place)


def beside(index: Index, filters: Filters, image: Row, place: int) -> dict[str, Any]:
    """The addresses of the images before and after this one, and of the page that it is on.

    An image that is no longer among those asked for, because its label was corrected, has left its place to the next.
    """
    around: dict[int, str | None] = {place + step: None for step in (-1, 0, 1)}
    start = max(place - 1, 1)
    if place:
        rows = read_images(index, filters, start - 1, place + 2 - start)
        around |= {start + number: row["path"] for number, row in enumerate(rows)}
    after = place + 1 if around[place] == image["path"] else place
    page = max(1, -(-place // PAGE_IMAGES))
    return {
        "back": f"/{filters.changed(page=page)}",
        **{
            name: to_address(filters, path, number) if (path := around[number]) else None
            for name, number in (("before", place - 1), ("after", after))
        },
    }


def probabilities(thin_tables: ThinTables, image: Row, models: Mapping[int, ModelVersion]) -> dict[str, Any] | None:
    """A row for each label that any version thinks likely, a column for each version whose labels are known."""
    where = (pc.field("path") == image["path"]) & (pc.field("image_id") == image["image_id"])
    rows = thin_tables.read(IMAGE_PREDICTIONS, ["model_version", "probabilities"], where).to_pylist()
    columns: dict[int, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: -row["model_version"]):
        model, found = models.get(row["model_version"]), row["probabilities"]
        if model and found and len(model.labels) == len(found):
            columns[row["model_version"]] = dict(zip(model.labels, found, strict=True))
    if not columns:
        return None
    greatest: dict[str, float] = {}
    for column in columns.values():
        greatest |= {label: max(share, greatest.get(label, 0)) for label, share in column.items()}
    labels = sorted(greatest, key=lambda label: -greatest[label])
    return {"columns": columns, "labels": labels[:SHOWN_LABELS], "more": max(0, len(labels) - SHOWN_LABELS)}


def trained_on(model: ModelVersion) -> str:
    """The Delta versions that a model version was trained on, in words."""
    try:
        return ", ".join(f"{table} v{version}" for table, version in table_versions(model).items())
    except ValueError:
        return "not known"


def replays(thin_tables: ThinTables, image: Row) -> Sequence[Row]:
    """How the file was judged again while it was quarantined, the newest first."""
    rows = thin_tables.read(REPLAYED_FILES, REPLAYED_FILES.columns.fieldNames(), pc.field("path") == image["path"])
    return sorted(rows.to_pylist(), key=lambda row: row["replayed_at"], reverse=True)


def near_by_embedding(index: Index, embeddings: KeptEmbeddings, image: Row) -> dict[str, Any]:
    """The images nearest by embedding, with their `likeness`; None where no embedding of this one is kept."""
    kept = embeddings.now() if image["image_id"] else None
    found = kept.nearest(image["image_id"], 2 * SHOWN) if kept else []  # some may be gone
    files = by_path(index, [image_id for image_id, _ in found])
    near = [{**files[image_id], "likeness": likeness} for image_id, likeness in found if image_id in files]
    return {"near": near[:SHOWN] or None, "backbone": kept.backbone if kept else None}


def file_name(path: str) -> str:
    """A path's last part, as the file is called."""
    return unquote(path.rpartition("/")[2])


def percent(share: float | None) -> str:
    """A share in whole percents; one that is no whole, or not nothing, never looks as if it were."""
    if share is None:
        return "–"
    return f"{min(99, max(1, round(100 * share))) if 0 < share < 1 else round(100 * share)} %"


def size(length: int | None) -> str:
    """A number of bytes in the unit that reads best."""
    if length is None:
        return "–"
    number, unit = float(length), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}" if unit else f"{length} bytes"


def moment(time: datetime | None) -> str:
    """A time of this machine's clock, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}" if time else "–"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


WORDS: dict[str, Callable[..., str]] = {
    "file_name": file_name,
    "percent": percent,
    "size": size,
    "moment": moment,
    "count": count,
}
