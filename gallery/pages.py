"""What the pages show: the page of images, the page of one image, and how values are formatted."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote, urlencode

import pyarrow.compute as pc

from gallery.neighbors import NEIGHBORS, LiveEmbeddings, nearest_by_hash
from gallery.queries import (
    PAGE_IMAGES,
    Page,
    all_labels,
    corrections_of,
    current_images,
    exact_copies,
    former_contents,
    image_url,
    predictions_of,
    read_choices,
    read_image,
    read_page,
)
from image_assets.models.explanations import labels_to_explain
from image_assets.models.lineage import table_versions
from image_assets.predictions.image_filters import (
    DISAGREEMENTS,
    LABEL_STATUSES,
    RESULTS,
    SORTS,
    SPLITS,
    Filters,
    InvalidInput,
    Row,
    read_images,
    shown_version,
)
from image_assets.predictions.image_index import Index, to_hash_text
from image_assets.schemas import IMAGE_PREDICTIONS, REPLAYED_FILES
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelVersion

MAX_LABELS = 12  # in the table of probabilities
UNITS = ("bytes", "KB", "MB", "GB")
cached_choices = lru_cache(maxsize=1)(read_choices)  # of one index only; every refresh makes another
Option = tuple[Any, str]  # the value of a filter, and its text


def images_page(index: Index, filters: Filters) -> dict[str, Any]:
    """The values of the template `images.html`."""
    page = read_page(index, filters)
    version = shown_version(index, filters)
    choices = cached_choices(index, version, filters.state)
    files = dict(choices["state"])
    return {
        "index": index,
        "filters": filters,
        "page": page,
        "page_urls": page_urls(page, filters),
        "total": files.pop(filters.state),
        "others": [(state, count, Filters(state=state).url()) for state, count in files.items() if count],
        "version": version,
        "framework": dict(choices["framework"]).get(version),
        "options": options(choices),
        "image_url": partial(image_url, filters),
    }


def options(choices: Mapping[str, list[Option]]) -> dict[str, list[Option]]:
    """The options of each filter, from the values to choose from."""
    frameworks = dict(choices["framework"])
    counted = ("label", "predicted", "format", "attribute", "state", "reason")
    return {
        **{name: [(value, f"{value} ({files:,})") for value, files in choices[name]] for name in counted},
        "version": [
            (version, f"{version}, {frameworks[version]} ({count:,})") for version, count in choices["version"]
        ],
        "disagreement": [
            *((name, text) for name, (text, _) in DISAGREEMENTS.items()),
            *((version, f"version {version} disagrees") for version, _ in choices["version"]),
        ],
        "result": [(name, text) for name, (text, _) in RESULTS.items()],
        "label_status": [(name, text) for name, (text, _) in LABEL_STATUSES.items()],
        "split": [*SPLITS.items()],
        "sort": [(name, text) for name, (text, _) in SORTS.items()],
    }


def page_urls(page: Page, filters: Filters) -> dict[str, str | None]:
    """The URLs of the first, previous, next and last page; None for this page and for pages that do not exist."""
    numbers = {"first": 1, "previous": page.number - 1, "next": page.number + 1, "last": page.pages}
    return {
        name: filters.url(page=number) if 1 <= number <= page.pages and number != page.number else None
        for name, number in numbers.items()
    }


def image_page(
    index: Index, delta_tables: DeltaTables, embeddings: LiveEmbeddings, parameters: Mapping[str, str]
) -> dict[str, Any] | None:
    """The values of the template `image.html`.

    Args:
        index: The index.
        delta_tables: The tables, for what the index does not hold.
        embeddings: The embeddings of the home.
        parameters: Of the URL: the image's `path`, its position `at`, and the filters it was found with.

    Returns:
        The values; None if the ledger has no file with this path.
    """
    image = read_image(index, parameters.get("path", ""))
    if image is None:
        return None
    filters = Filters.read({name: value for name, value in parameters.items() if name != "path"})
    predictions = predictions_of(index, image)
    return {
        "index": index,
        "image_url": partial(image_url, Filters()),
        "image": image,
        "hash": to_hash_text(image["perceptual_hash"]),
        "corrections": corrections_of(index, image),
        "labels": all_labels(index),
        "predictions": predictions,
        "probabilities": probabilities(delta_tables, image, index.models) if predictions else None,
        "explanations": [explanation(index, image, prediction) for prediction in predictions],
        "trained_on": {version: trained_on(model) for version, model in index.models.items()},
        "former_contents": former_contents(index, image),
        "exact_copies": exact_copies(index, image),
        "replays": replays(delta_tables, image),
        "nearest_by_hash": nearest_by_hash(index, image),
        **nearest_by_embedding(index, embeddings, image),
        **adjacent_urls(index, filters, image, to_position(parameters)),
    }


def to_position(parameters: Mapping[str, str]) -> int:
    """The position of the image among those that match the filters, counted from 1; 0 if the URL has none."""
    position = parameters.get("at") or "0"
    if not position.isdecimal() or len(position) > 9:
        raise InvalidInput(f"at is {position[:80]!r}: expected a number, such as 1")
    return int(position)


def adjacent_urls(index: Index, filters: Filters, image: Row, position: int) -> dict[str, Any]:
    """The URLs of the previous and next image, and of the page of images that this one is on.

    An image stops matching the filters when its label is corrected. Its position then belongs to the next image.
    """
    paths: dict[int, str | None] = {position + step: None for step in (-1, 0, 1)}
    start = max(position - 1, 1)
    if position:
        rows = read_images(index, filters, start - 1, position + 2 - start)
        paths |= {start + number: row["path"] for number, row in enumerate(rows)}
    next_position = position + 1 if paths[position] == image["path"] else position
    page = max(1, -(-position // PAGE_IMAGES))
    return {
        "page_url": f"/{filters.url(page=page)}",
        **{
            name: image_url(filters, path, number) if (path := paths[number]) else None
            for name, number in (("previous_url", position - 1), ("next_url", next_position))
        },
    }


def probabilities(delta_tables: DeltaTables, image: Row, models: Mapping[int, ModelVersion]) -> dict[str, Any] | None:
    """The probabilities of the likeliest labels, by version.

    Returns:
        `columns`, each version's probability by label, newest version first; `labels`, the `MAX_LABELS` labels with
        the greatest probability in any version; `more`, how many labels are left out. None if the registry does not
        know the labels of any version.
    """
    where = (pc.field("path") == image["path"]) & (pc.field("image_id") == image["image_id"])
    columns = ["model_name", "model_version", "version_id", "probabilities"]
    rows = delta_tables.read(IMAGE_PREDICTIONS, columns, where).to_pylist()
    by_version: dict[int, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: (-row["model_version"], row["version_id"])):
        model, values = models.get(row["model_version"]), row["probabilities"]
        if model and row["model_name"] == model.name and values and len(model.labels) == len(values):
            if row["version_id"] not in ("", model.version_id):  # of another registry's version with the same number
                continue
            by_version[row["model_version"]] = dict(zip(model.labels, values, strict=True))
    if not by_version:
        return None
    greatest: dict[str, float] = {}
    for column in by_version.values():
        greatest |= {label: max(value, greatest.get(label, 0)) for label, value in column.items()}
    labels = sorted(greatest, key=lambda label: -greatest[label])
    return {"columns": by_version, "labels": labels[:MAX_LABELS], "more": max(0, len(labels) - MAX_LABELS)}


def explanation(index: Index, image: Row, prediction: Row) -> dict[str, Any]:
    """The URL of the picture that explains a prediction, or the `reason` why there is none.

    The picture shows the predicted label and, if it is another one that the version knows, the label of the image.
    """
    version = prediction["version"]
    model, wrong = index.models.get(version), image["label"] not in (None, prediction["label"])
    values = {"version": version, "labels": [], "open": wrong and version == index.serving, "reason": None}
    if prediction["fault"]:
        return values | {"reason": f"The version failed on this image: {prediction['fault']}."}
    if prediction["label"] is None:
        return values | {"reason": "The version predicts no label: none is probable enough."}
    if model is None or prediction["label"] not in model.labels:
        return values | {"reason": "The registry does not have this version and its labels, so it cannot be loaded."}
    labels = labels_to_explain(prediction["label"], image["label"], model)
    return values | {
        "labels": labels,
        "url": f"/explanations/{image['image_id']}/{version}?{urlencode({'label': labels}, doseq=True)}",
    }


def trained_on(model: ModelVersion) -> str:
    """The Delta versions of the tables that a model version was trained on, as text."""
    try:
        return ", ".join(f"{table} v{version}" for table, version in table_versions(model).items())
    except ValueError:
        return "unknown"


def replays(delta_tables: DeltaTables, image: Row) -> Sequence[Row]:
    """The retries of the file while it was quarantined, newest first."""
    rows = delta_tables.read(REPLAYED_FILES, REPLAYED_FILES.columns.fieldNames(), pc.field("path") == image["path"])
    return sorted(rows.to_pylist(), key=lambda row: row["replayed_at"], reverse=True)


def nearest_by_embedding(index: Index, embeddings: LiveEmbeddings, image: Row) -> dict[str, Any]:
    """Current images with the most similar embeddings and their cosine `similarity`; None without an embedding."""
    stored = embeddings.current()
    if stored is None or image["image_id"] not in stored.row_numbers:
        return {"nearest_by_embedding": None}
    # Twice as many as are shown, because some of them may have been deleted; all if that is not enough.
    for count in (2 * NEIGHBORS, len(stored.image_ids)):
        similar = stored.nearest(image["image_id"], count)
        files = current_images(index, [image_id for image_id, _ in similar])
        rows = [{**files[image_id], "similarity": cosine} for image_id, cosine in similar if image_id in files]
        if len(rows) >= NEIGHBORS:
            break
    return {"nearest_by_embedding": rows[:NEIGHBORS], "embedded_by": stored.backbone}


def file_name(path: str) -> str:
    """The last part of a path, without percent-encoding."""
    return unquote(path.rpartition("/")[2])


def percent(share: float | None) -> str:
    """A share in whole percent; only 0 and 1 themselves are shown as 0% and 100%."""
    if share is None:
        return "–"
    return f"{min(99, max(1, round(100 * share))) if 0 < share < 1 else round(100 * share)}%"


def file_size(length: int | None) -> str:
    """A number of bytes, in the largest unit that makes it 1 or more."""
    if length is None:
        return "–"
    number, unit = float(length), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}" if unit else f"{length} bytes"


def local_time(time: datetime | None) -> str:
    """A time in this machine's time zone, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}" if time else "–"


def count(number: int) -> str:
    """A number with thousands separators."""
    return f"{number:,}"


TEMPLATE_FILTERS: dict[str, Callable[..., str]] = {
    "file_name": file_name,
    "percent": percent,
    "file_size": file_size,
    "local_time": local_time,
    "count": count,
}
