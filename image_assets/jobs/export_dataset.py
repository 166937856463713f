"""Export of images with their labels, splits and predictions, in the formats that other programs read."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import file_digest
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast  # Any: JSON, and a row of the index
from urllib.parse import parse_qsl, unquote

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from image_assets.jobs.dataset_formats import (
    FORMATS,
    MARK,
    STARTED,
    UNFINISHED_MARK,
    Contents,
    ExportedImage,
    ExportFolder,
    FormatName,
)
from image_assets.jobs.launchpad_examples import with_example
from image_assets.predictions.image_filters import (
    IMAGES_WITH_PREDICTIONS,
    SPLITS,
    Filters,
    InvalidInput,
    read_images,
    shown_version,
)
from image_assets.predictions.image_index import Index, read_index
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import is_url, open_file, uncached_file_system
from resources.files.image_folder import ImageFolder
from resources.files.replacing import replace_file
from resources.mlflow.model_registry import MODEL_NAME, ModelRegistry
from resources.setting_values import HALF_URL

PAGE_IMAGES = 5000
PROGRESS_IMAGES = 10_000
LISTED_IMAGES = 100
LARGE_BYTES = 64 * 1024**2  # files up to this size are read once; larger ones twice, in pieces
MAX_PARQUET_BYTES = 1900 * 1024**2  # a value in Parquet must be smaller than 2 GiB
TOO_LARGE = "it is too large for Parquet"
UNREADABLE = "its file is gone or has changed, and no table holds its bytes"


class ExportConfig(dg.Config):
    """What to export, where, and how."""

    folder: str = Field(description="An empty or new folder on disk or object storage, such as `s3://…`.")
    format: FormatName = Field(
        default="image_folder", description="`image_folder`, `coco`, `hugging_face` or `label_studio`."
    )
    filter: str = Field(
        default="",
        description="The images that a page of the gallery shows: its address, or only what follows the `?`, such as "
        "`split=test&answer=mistakes`. Default: all current images.",
    )
    overwrite: bool = Field(default=False, description="Replace an earlier export in the folder; never anything else.")


@dataclass(frozen=True)
class Report:
    """What was exported: the number of images by split, and why images were left out."""

    images: Mapping[str, int]
    left_out: Mapping[str, str]
    model_version: int | None


def to_filters(text: str) -> Filters:
    """The filters in the address of a page of the gallery.

    Raises:
        ValueError: A filter does not exist, or its value is not allowed.
    """
    query = text.partition("?")[2] if "?" in text or is_url(text) else text
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    names = {field.alias or name for name, field in Filters.model_fields.items()}
    if (unknown := sorted(parameters.keys() - names)) or (query.strip() and not parameters):
        found = unknown[0] if unknown else query
        raise ValueError(f"the filter has {found!r}: expected {', '.join(sorted(names))}, as in the gallery's address")
    try:
        return Filters.read(parameters).model_copy(update={"page": 1})
    except InvalidInput as error:
        raise ValueError(f"the filter cannot be used: {error}") from error


def to_folder(folder: str, landing: str) -> str:
    """The absolute folder; a ValueError if it holds, or is in, the landing folder, or if its URL is incomplete."""
    if half := HALF_URL.match(folder):
        raise ValueError(
            f"the export folder begins with {half[0]!r}: expected a folder such as /srv/flowers, or a URL such as s3://…"
        )
    url = folder.rstrip("/") if is_url(folder) else str(Path(folder).expanduser().resolve())
    other = landing.rstrip("/") if is_url(landing) else str(Path(landing).resolve())
    if f"{url}/".startswith(f"{other}/") or f"{other}/".startswith(f"{url}/"):
        raise ValueError(
            f"the export folder {url} overlaps the landing folder {other}, which would ingest the exported files "
            "again: choose a folder beside it"
        )
    return url


def prepare(folder: ExportFolder, *, overwrite: bool) -> None:
    """Empties the folder of an earlier export, or of one that was killed.

    Raises:
        FileExistsError: It contains anything else, or a complete export that must not be overwritten.
    """
    system, path = uncached_file_system(folder.url)
    if system.isfile(path):
        raise FileExistsError(f"{folder.url} is a file: choose a folder")
    names = entry_names(system, path)
    if not names - {UNFINISHED_MARK}:  # a full disk may stop an export before it has its mark
        return
    try:
        mark = json.loads(system.cat_file(f"{path}/{MARK}"))
        complete = mark["complete"]
        written = {*mark["entries"], *entry_names(system, f"{path}/{STARTED}")}
        own = {*written, STARTED, MARK, UNFINISHED_MARK}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{folder.url} is not empty and holds no earlier export, so nothing was written: choose another folder"
        ) from error
    if complete and not overwrite:
        raise FileExistsError(
            f"{folder.url} holds an export of {mark['started_at']}, so nothing was written: choose another folder, or "
            "set overwrite to true"
        )
    if others := sorted(names - own):
        problem = (
            f"also holds {others[0]}, which is not part of the export, so nothing was written: move it away"
            if complete or written
            else "holds an unfinished export of an earlier release, which does not say which files it wrote: delete "
            "the folder, or choose another one"
        )
        raise FileExistsError(f"{folder.url} {problem}")
    for name, files in mark.get("files", {}).items():  # of a complete export; earlier releases have none
        if (found := len(system.find(f"{path}/{name}"))) > files:
            raise FileExistsError(
                f"{folder.url}/{name} has {found:,} files, but the export wrote {files:,}, so nothing was written: "
                "move the files away that somebody put there"
            )
    # A run that is killed now is repeated by the next one.
    write_mark(folder, {**mark, "entries": sorted(own)}, complete=False)
    for name in names - {MARK, UNFINISHED_MARK}:
        system.rm(f"{path}/{name}", recursive=True)


def entry_names(system: Any, path: str) -> set[str]:
    """The names of a folder's entries; none if it does not exist."""
    entries = system.ls(path, detail=False) if system.exists(path) else []
    return {str(entry).rstrip("/").rpartition("/")[2] for entry in entries}


def write_mark(folder: ExportFolder, values: Mapping[str, Any], *, complete: bool) -> None:
    """Writes the file that says what the folder holds, in whole or not at all."""
    text = json.dumps({**values, "complete": complete}, ensure_ascii=False, indent=2)
    if is_url(folder.url):  # an object appears when it is complete
        system, path = uncached_file_system(f"{folder.url}/{MARK}")
        system.pipe_file(path, text.encode())
        return
    part = Path(folder.url) / UNFINISHED_MARK
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    replace_file(part, part.with_name(MARK))


def matching_images(index: Index, filters: Filters, landing: str) -> Iterator[ExportedImage]:
    """The images that match the filters and were decoded, one split after the other."""
    version = shown_version(index, filters)
    for split in [filters.split] if filters.split else SPLITS:
        one_split, start = filters.model_copy(update={"split": split}), 0
        while rows := read_images(index, one_split, start, PAGE_IMAGES):
            yield from (to_image(row, version, landing) for row in rows if row["width"])
            start += len(rows)


def to_image(row: Mapping[str, Any], version: int | None, landing: str) -> ExportedImage:
    """A row of the index as an image to export."""
    return ExportedImage(
        number=row["n"],
        path=unquote(row["path"].removeprefix(f"{landing}/"), errors="replace"),
        table_path=row["path"],
        image_id=row["image_id"],
        length=row["length"],
        width=row["width"],
        height=row["height"],
        label=row["label"],
        split=row["split"],
        predicted_label=row["predicted"],
        probability=row["probability"],
        model_version=version,
        attributes=row["attributes"] or {},
    )


def read_contents(index: Index, filters: Filters, model_name: str) -> Contents:
    """What the filters select in all."""
    where, values = filters.to_sql()
    values = [shown_version(index, filters), *values]
    selected = f"{IMAGES_WITH_PREDICTIONS} WHERE {where} AND width > 0"
    splits = index.rows(f"SELECT split, count(*) AS images, sum(length)::BIGINT AS bytes {selected} GROUP BY 1", values)
    labels = f"SELECT unnest([label, predicted]) AS label {selected}"
    names = f"SELECT DISTINCT unnest(map_keys(attributes)) AS name {selected}"
    found = index.rows(f"SELECT DISTINCT label FROM ({labels}) WHERE label IS NOT NULL ORDER BY 1", values)
    return Contents(
        labels=[row["label"] for row in found],
        images={row["split"]: row["images"] for row in splits},
        bytes={row["split"]: row["bytes"] for row in splits},
        attribute_names=sorted(row["name"] for row in index.rows(names, values)),
        model_name=model_name,
    )


@contextmanager
def opened(image: ExportedImage, delta_tables: DeltaTables, link_roots: Sequence[str]) -> Iterator[BinaryIO | None]:
    """Opens an image: its file or, if that has changed, its bytes in the table; None without either."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(image.table_path, link_roots))
            source = file if image.length > LARGE_BYTES else BytesIO(file.read(LARGE_BYTES + 1))
            same = file_digest(cast(BufferedReader, source), "sha256").hexdigest() == image.image_id
        except OSError:
            source, same = BytesIO(), False
        if not same:
            where = (pc.field("path") == image.table_path) & (pc.field("image_id") == image.image_id)
            stored = delta_tables.read(FEATURED_IMAGES, ["content"], where)["content"].to_pylist()
            source = BytesIO(stored[0]) if stored and stored[0] is not None else None
        if source:
            source.seek(0)
        yield source


def export(
    delta_tables: DeltaTables,
    index: Index,
    config: ExportConfig,
    image_folder: ImageFolder,
    *,
    model_name: str = MODEL_NAME,
    log: Callable[[str], None] = print,
) -> Report:
    """Writes the dataset.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: The folder or the filter cannot be used, no image matches, or its version has no predictions.
    """
    filters, folder = to_filters(config.filter), ExportFolder(to_folder(config.folder, image_folder.root))
    contents = read_contents(index, filters, model_name)
    if not contents.images:
        raise ValueError(f"no image matches the filter {config.filter!r}, so nothing was written: change it")
    if filters.version:
        require_predictions(index, filters.version)
    prepare(folder, overwrite=config.overwrite)
    version = shown_version(index, filters)
    mark: dict[str, Any] = {
        "format": config.format,
        "filter": config.filter,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "table_versions": dict(index.versions),
        "model_version": version,
        "labels": [*contents.labels],
    }
    write_mark(folder, {**mark, "entries": []}, complete=False)
    dataset, exported, left_out = FORMATS[config.format](folder, contents), Counter[str](), dict[str, str]()
    for image in matching_images(index, filters, image_folder.path):
        if config.format == "hugging_face" and image.length > MAX_PARQUET_BYTES:
            left_out[image.table_path] = TOO_LARGE
            continue
        with opened(image, delta_tables, image_folder.real_link_roots) as source:
            if source is None:
                left_out[image.table_path] = UNREADABLE
                continue
            dataset.add(image, source)
        exported[image.split or "none"] += 1
        if exported.total() % PROGRESS_IMAGES == 0:
            log(f"{exported.total():,} of {sum(contents.images.values()):,} images")
    dataset.finish()
    counts = {
        "entries": sorted(folder.entries),
        "files": dict(folder.entries),
        "images": dict(exported),
        "left_out": left_out,
    }
    write_mark(folder, {**mark, **counts}, complete=True)
    folder.forget_started()
    return Report(exported, left_out, version)


def require_predictions(index: Index, version: int) -> None:
    """Raises a ValueError that names the versions with predictions, unless the version is one of them."""
    versions = [row["version"] for row in index.rows("SELECT DISTINCT version FROM predictions ORDER BY 1")]
    if version not in versions:
        expected = f"expected {' or '.join(map(str, versions))}" if versions else "no version has any"
        raise ValueError(f"version {version} has no predictions, so nothing was written: {expected}")


@dg.op
def export_images(
    context: dg.OpExecutionContext,
    config: ExportConfig,
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    model_registry: ModelRegistry,
) -> None:
    """Exports images. The output's metadata contains the folder, and how many images of each split are in it."""
    index = read_index(
        delta_tables, model_registry.versions(), model_registry.name, merge_labels=image_folder.merge_labels
    )
    report = export(delta_tables, index, config, image_folder, model_name=model_registry.name, log=context.log.info)
    for path, why in [*report.left_out.items()][:LISTED_IMAGES]:
        context.log.warning(f"{path} was left out: {why}")
    context.add_output_metadata(
        {
            "folder": dg.MetadataValue.path(config.folder),
            "images": sum(report.images.values()),
            **{f"images_{split}": images for split, images in sorted(report.images.items())},
            "left_out": len(report.left_out),
            "model_version": report.model_version or "none",
        }
    )


@dg.job(
    description=with_example(
        "export_dataset",
        "Export images with their labels, splits and predictions as ImageFolder, COCO, Hugging Face Parquet or tasks "
        "of Label Studio.",
    )
)
def export_dataset() -> None:
    """Exports one dataset."""
    export_images()
