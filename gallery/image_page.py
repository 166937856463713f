"""What the page of one image shows: everything that the tables know of it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow.compute as pc

from gallery.filters import Filters, WrongFilter
from gallery.index import Index, to_hash_text
from gallery.neighbours import SHOWN, KeptEmbeddings, look_alikes
from gallery.queries import (
    PAGE_IMAGES,
    Row,
    by_path,
    corrections_of,
    former_contents,
    known_labels,
    read_answers,
    read_image,
    read_images,
    same_content,
    to_address,
)
from image_assets.schemas import IMAGE_PREDICTIONS, REPLAYED_FILES
from image_assets.table_versions import table_versions
from resources.model_registry import ModelVersion
from resources.thin_tables import ThinTables

SHOWN_LABELS = 12  # in the table of probabilities


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
