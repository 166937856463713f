"""Images from Hugging Face's Parquet files as files in the landing folder."""

import errno
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import PurePosixPath
from typing import BinaryIO

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from image_assets.data.given_labels import LABEL_NAMES
from image_assets.data.label_corrections import label_problem
from image_assets.images.formats import SIGNATURE_BYTES, format_of
from image_assets.jobs.dataset_formats import SPLIT_FOLDERS, FileNames, safe_name
from image_assets.jobs.launchpad_examples import with_example
from resources.delta.external_table import class_name, class_names, is_binary
from resources.files import image_folder as landed_files
from resources.files.file_system import SUFFIXES, escaped, open_file, require_file_or_s3, uncached_file_system
from resources.files.image_folder import ImageFolder
from resources.files.listing import NameFilter

LEADS_ELSEWHERE = (errno.ELOOP, errno.ENOTDIR)  # a file or folder is a link that is not followed
BATCH_ROWS = 16  # images in memory at once, besides the row group
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class UnpackConfig(dg.Config):
    """The Parquet files to unpack."""

    source: str = Field(
        description="A Parquet file with a column `image` of bytes, on disk or S3; `*` stands for any name."
    )


@dataclass(frozen=True)
class PackedImage:
    """An image in a Parquet file; its label may be missing."""

    path: str
    content: bytes
    label: str | None


def split_of(path: str) -> str | None:
    """The split in the name of a file, such as `train-00000-of-00001.parquet`, or that its folder is called."""
    file = PurePosixPath(path)
    words = [*re.split(r"[^a-z]+", file.name.lower()), file.parent.name.lower()]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def label_column(schema: pa.Schema) -> str | None:
    """The column with the labels: one with a usual name, else the only one with names of classes."""
    plain = [field.name for field in schema if not pa.types.is_nested(field.type) and not is_binary(field.type)]
    usual = next((name for name in LABEL_NAMES if name in plain), None)
    classes = [name for name in class_names(schema.metadata) if name in plain]
    return usual or (classes[0] if len(classes) == 1 else None)


def packed_images(file: BinaryIO) -> Iterator[PackedImage | None]:
    """The images of a Parquet file; None for rows without bytes.

    Raises:
        ValueError: It cannot be read, or has no column of images.
    """
    try:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        require_images(schema)
        label = label_column(schema)
        names = class_names(schema.metadata).get(label or "", [])
        columns = ["image", label] if label else ["image"]
        for number, batch in enumerate(parquet.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)):
            for at, row in enumerate(batch.to_pylist()):
                found, value = row["image"] or {}, row.get(label)
                if found.get("bytes") is None:
                    yield None
                    continue
                path = found.get("path") or f"image-{number * BATCH_ROWS + at:07}"
                yield PackedImage(path, found["bytes"], class_name(value, names) if names else to_label(value))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is not a Parquet file, or it is damaged ({error})") from error


def to_label(value: object) -> str | None:
    """A label that is not the number of a class."""
    return None if value is None else str(value)


def require_images(schema: pa.Schema) -> None:
    """Raises a ValueError unless `image` is a column of bytes and paths."""
    image = next((field.type for field in schema if field.name == "image" and pa.types.is_struct(field.type)), None)
    fields = {field.name: field.type for field in image or ()}
    if "bytes" not in fields:
        raise ValueError(f"expected a column image with bytes and path, found the columns {', '.join(schema.names)}")
    path = fields.get("path", pa.string())
    if not is_binary(fields["bytes"]) or not (pa.types.is_string(path) or pa.types.is_large_string(path)):
        found = ", ".join(f"{name}: {of}" for name, of in fields.items())
        raise ValueError(f"expected a column image of bytes (binary) and path (string), found {found}")


def unpack(source: str, landing: ImageFolder) -> Counter[str]:
    """Writes the images to the landing folder, by split and label; files that are there already stay.

    Returns:
        How many images were written, were there already, or were left out by reason; and how many have no label.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file has no images, or its location is not supported.
    """
    require_file_or_s3(source)
    system, pattern = uncached_file_system(source)
    paths = sorted(str(path) for path in system.glob(pattern)) if "*" in pattern else [pattern]
    if not paths or not all(map(system.isfile, paths)):
        raise FileNotFoundError(f"{source} does not exist: expected a Parquet file, or several by a pattern with *")
    landed_files.prepare(landing.root)
    splits = {path: split_of(path) for path in paths}
    are_split, names, counts = any(splits.values()), FileNames(), Counter[str]()
    listed = landing.name_filter()
    for path, split in splits.items():
        with system.open(path, "rb") as file:
            try:
                for image in packed_images(file):
                    # Without a split, the label's folder would count as a split beside the others.
                    in_label = bool(split or not are_split)
                    counts[place(image, SPLIT_FOLDERS.get(split or "", ""), in_label, landing, listed, names)] += 1
                    counts["without_label"] += image is not None and not image.label
            except ValueError as error:
                raise ValueError(f"{path} cannot be unpacked: {error}") from error
    return +counts


def place(
    image: PackedImage | None,
    split_folder: str,
    in_label: bool,
    landing: ImageFolder,
    listed: NameFilter,
    names: FileNames,
) -> str:
    """Writes an image, unless the same bytes are there; returns what became of it, as a word."""
    if image is None:
        return "without_bytes"
    kind = format_of(image.content[:SIGNATURE_BYTES])
    if kind is None:
        return "no_image"
    if image.label and label_problem(image.label):
        return "invalid_label"
    label = image.label if in_label else None
    folder = "".join(f"{part}/" for part in (split_folder, label) if part)
    name = safe_name(image.path)
    if PurePosixPath(name).suffix.lower() not in SUFFIXES:
        name = f"{name}.{kind.lower()}"
    if not listed.takes(f"{folder}{name}"):
        return "excluded"
    digest = sha256(image.content).hexdigest()
    while landed_files.exists(landing.root, path := names.unique(folder, name, digest)):
        try:
            with open_file(f"{landing.path}/{escaped(path)}", landing.real_link_roots) as file:
                if file.read(len(image.content) + 1) == image.content:
                    return "unchanged"
        except OSError as error:
            if error.errno not in LEADS_ELSEWHERE:
                raise
    landed_files.put(landing.root, path, BytesIO(image.content))
    return "written"


@dg.op(pool="fetched_images")  # both write to the landing folder, and remove partial files there when they start
def unpack_images(context: dg.OpExecutionContext, config: UnpackConfig, image_folder: ImageFolder) -> None:
    """Unpacks images. The output's metadata contains how many were written, and why others were left out."""
    counts = unpack(config.source, image_folder)
    context.log.info(", ".join(f"{count:,} {what}" for what, count in counts.most_common()) or "no images")
    context.add_output_metadata({"source": config.source, "written": 0, **counts})


@dg.job(
    description=with_example(
        "unpack_parquet",
        "Write the images in Hugging Face's Parquet files to the landing folder, by split and label.",
    )
)
def unpack_parquet() -> None:
    """Unpacks the files of one dataset."""
    unpack_images()
