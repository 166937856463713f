"""A sample of each label to explore, with pixels and thumbnails, and statistics of all images."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from urllib.parse import unquote, urlsplit

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from image_assets.data.folder_layout import read_layout
from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.data.ingestion import to_limits
from image_assets.data.inspection import CURRENT
from image_assets.data.labels import Labels, read_labels
from image_assets.images.charts import distributions, picture_markdown
from image_assets.images.contact_sheets import contact_sheet, small_jpeg, thumbnails, to_caption
from image_assets.images.formats import UnreadableImage
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits
from image_assets.images.pictures import open_picture
from image_assets.images.pixels import SMALLER_SIDE_PIXELS, decoded_picture, to_smaller, upright
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SAMPLES, IMAGE_SPLITS
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import evenly_spaced, write_files
from resources.delta.table import file_layout
from resources.delta.unchanged import describe_once
from resources.delta.writing import collected
from resources.files.file_system import SCHEME, open_file, read_content, to_name, to_path
from resources.files.image_folder import ImageFolder
from resources.files.s3 import SCHEME as S3
from resources.progress import ProgressLine
from resources.samples import SampleSize

LISTED_GROUPS = 20
SHEET_IMAGES = 200  # on the contact sheet of the sample
SHEET_GROUPS = 8  # on a contact sheet, one per row
PATHS_PER_GROUP = 4
STEPS_PER_DOUBLING = 4  # bars in a histogram for each doubling
SAMPLE_PIXELS = 96  # side of the stored thumbnails
MAX_PIXELS = SMALLER_SIDE_PIXELS**2  # of larger images, the pixels of a downscaled copy are stored
FILES_PER_JOB = 32  # bounds the memory for pixels; with more, Spark starts another job to list the files
COMPARED_COLUMNS = ["path", "image_id", "label"]
PIXELS = ("height", "width", "channels", "mode", "data")
OPENCV_COLOR = 16  # OpenCV's number for three bytes per pixel
# Spark's image source treats such names as patterns or addresses, and drops slashes; these files get a thumbnail, but
# no pixels.
UNSUPPORTED_NAME = re.compile(r"[%*?\[\]{}\\:]|.//")


@dataclass(frozen=True)
class Group:
    """Images with a common value: their number and the first paths."""

    name: str
    files: int
    paths: list[str]


def current_images(delta_tables: DeltaTables) -> pd.DataFrame:
    """The current images with their features and duplicate_group, without content."""
    features = [*IMAGE_KEYS, "label", "format", "width", "height", "length"]
    images = delta_tables.read(FEATURED_IMAGES, features).to_pandas()
    groups = delta_tables.read(IMAGE_SPLITS, [*IMAGE_KEYS, "duplicate_group"]).to_pandas()
    return images.merge(current_keys(delta_tables), on=IMAGE_KEYS).merge(groups, on=IMAGE_KEYS, how="left")


def groups_of_several(images: pd.DataFrame, by: str, *differing: str) -> list[Group]:
    """The groups with equal values of `by` and different values in every other column, largest first."""
    several = images[images[by].notna() & images[by].duplicated(keep=False)]
    groups = [
        Group(str(name), len(members), sorted(members["path"])[:PATHS_PER_GROUP])
        for name, members in several.groupby(by)
        if all(len(set(members[column]) - {None}) > 1 for column in differing)
    ]
    return sorted(groups, key=lambda group: (-group.files, group.name))


def groups_table(groups: Sequence[Group]) -> dg.TableMetadataValue:
    """A table of the largest groups with their number of files and first paths."""
    columns = [dg.TableColumn("group"), dg.TableColumn("files", "int"), dg.TableColumn("paths")]
    records = [
        dg.TableRecord({"group": group.name, "files": group.files, "paths": "\n".join(group.paths)})
        for group in groups[:LISTED_GROUPS]
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def duplicates_metadata(images: pd.DataFrame, link_roots: Sequence[str]) -> dict[str, dg.MetadataValue]:
    """Metadata with exact duplicates, near duplicates and a contact sheet of both."""
    exact = groups_of_several(images, "image_id", "path")
    near = groups_of_several(images, "duplicate_group", "image_id")
    metadata = {
        "exact_duplicate_groups": dg.MetadataValue.int(len(exact)),
        "near_duplicate_groups": dg.MetadataValue.int(len(near)),
        "exact_duplicates": groups_table(exact),
        "near_duplicates": groups_table(near),
    }
    shown = [*exact[: SHEET_GROUPS // 2], *near[: SHEET_GROUPS // 2]]
    paths = [path for group in shown for path in group.paths]
    if paths:
        pictures = thumbnails(((path, None) for path in paths), link_roots)
        tiles = [(picture, to_caption(path, None)) for picture, path in zip(pictures, paths, strict=True)]
        title = f"the largest of {len(exact):,} groups of exact duplicates and {len(near):,} of near duplicates"
        metadata["duplicates"] = dg.MetadataValue.md(picture_markdown(contact_sheet(tiles), title))
    return metadata


def distribution_metadata(images: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """Metadata with charts of labels, formats and sizes; empty without images."""
    labels = Counter(label or "no label" for label in images["label"])
    if not labels:
        return {}
    picture = distributions(
        labels=labels,
        formats=Counter(images["format"]),
        sizes=Counter(zip(to_steps(images, "width"), to_steps(images, "height"), strict=True)),
        lengths=Counter(to_steps(images, "length")),
    )
    title = f"{len(images):,} images, {len(labels):,} labels"
    return {"distributions": dg.MetadataValue.md(picture_markdown(picture, title))}


def samples_metadata(delta_tables: DeltaTables, link_roots: Sequence[str]) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the sample, and with charts and duplicates of all current images."""
    shown = delta_tables.read(IMAGE_SAMPLES, ["path", "label", "thumbnail"]).to_pylist()
    shown.sort(key=lambda row: (row["label"] or "", row["path"]))
    drawn = evenly_spaced(shown, SHEET_IMAGES)
    tiles = [(row["thumbnail"] or b"", to_caption(row["path"], row["label"])) for row in drawn]
    some = f": {len(drawn)} of {len(shown):,} images" if len(drawn) < len(shown) else ""
    sheet = picture_markdown(contact_sheet(tiles), f"a sample of each label{some}") if tiles else ""
    images = current_images(delta_tables)
    return {
        **({"images": dg.MetadataValue.md(sheet)} if sheet else {}),
        **distribution_metadata(images),
        **duplicates_metadata(images, link_roots),
    }


def to_steps(images: pd.DataFrame, column: str) -> list[float]:
    """The column's values, rounded to STEPS_PER_DOUBLING steps for each doubling."""
    values = np.maximum(images[column].to_numpy(float), 1)
    return (2 ** (np.round(np.log2(values) * STEPS_PER_DOUBLING) / STEPS_PER_DOUBLING)).tolist()


def sample_files(files: Iterable[Row], labels: Labels, size: SampleSize) -> list[Row]:
    """A few current files of each label (path, image_id, label, length); stable while these files exist."""
    of_label: Counter[str | None] = Counter()
    of_folder: Counter[tuple[str | None, str]] = Counter()
    sample: list[Row] = []
    for file in sorted(files, key=lambda file: (file["image_id"], file["path"])):
        label = labels.of((file["path"], file["image_id"]))
        folder = (label, file["path"].rpartition("/")[0])
        if of_label[label] < size.per_label and (size.per_folder is None or of_folder[folder] < size.per_folder):
            sample.append({**file, "label": label})
            of_label[label] += 1
            of_folder[folder] += 1
    return sample


@dataclass(frozen=True)
class Preview:
    """A file's thumbnail; of a large image also its pixels, downscaled, as columns."""

    thumbnail: bytes
    pixels: Row | None = None


def to_preview(file: tuple[str, int], limits: Limits) -> Preview | None:
    """The preview of a file, by its path and length; None if it has changed or cannot be decoded."""
    path, length = file
    try:
        whole = length <= limits.content_bytes
        if whole:
            content = read_content(path, length=length, link_roots=limits.link_roots)
        else:
            with open_file(path, limits.link_roots) as opened:
                content = to_smaller(opened, SMALLER_SIDE_PIXELS, limits.reading)
        picture = open_picture(BytesIO(content))
        large = not whole or picture.header.width * picture.header.height > MAX_PIXELS
        side = SMALLER_SIDE_PIXELS if large else 2 * SAMPLE_PIXELS
        header, image, _ = decoded_picture(picture, content, "RGB", side, limits.reading)
    except (OSError, UnreadableImage):  # deleted, or quarantined by the next step: a gray box on the sheet
        return None
    if not large:
        return Preview(small_jpeg(image, header, SAMPLE_PIXELS))
    image.thumbnail((SMALLER_SIDE_PIXELS, SMALLER_SIDE_PIXELS))
    pixels = np.asarray(upright(image, header))[:, :, ::-1]  # blue, green, red
    height, width, channels = pixels.shape
    values = (height, width, channels, OPENCV_COLOR, pixels.tobytes())
    return Preview(small_jpeg(image, header, SAMPLE_PIXELS), dict(zip(PIXELS, values, strict=True)))


def sample_rows(
    delta_tables: DeltaTables, files: Iterable[Row], limits: Limits, progress: ProgressLine
) -> Iterator[Row]:
    """The rows of sampled files; Spark, which starts only for them, reads the pixels of those that are not large."""
    readable: list[Row] = []
    with GuardedProcess(partial(to_preview, limits=limits), memory_bytes=limits.memory_bytes) as guarded:
        for file in files:
            length = file["length"]
            preview = guarded.run((file["path"], length), cpu_seconds=limits.seconds_for(length))
            progress.update()
            row: Row = {**{name: file[name] for name in COMPARED_COLUMNS}, **dict.fromkeys((*PIXELS, "thumbnail"))}
            if preview is None or isinstance(preview, ItemFailure):
                yield row
                continue
            row["thumbnail"] = preview.thumbnail
            if preview.pixels or spark_name(row["path"]) is None:
                yield row | (preview.pixels or {})
            else:
                readable.append(row)
    for start in range(0, len(readable), FILES_PER_JOB):
        rows = readable[start : start + FILES_PER_JOB]
        pixels = spark_pixels(delta_tables.spark, [row["path"] for row in rows], limits.link_roots)
        yield from (row | pixels.get(row["path"], {}) for row in rows)


def spark_name(path: str) -> str | None:
    """The path in the form that Spark's image source reads; None if it cannot read it."""
    scheme = next((scheme for scheme in (SCHEME, S3) if path.startswith(scheme)), None)
    if scheme is None or UNSUPPORTED_NAME.search(path.removeprefix(scheme)):
        return None
    return f"file://{to_name(path).decode()}" if scheme == SCHEME else path


def path_of_origin(origin: str) -> str:
    """Our form of a path that Spark's image source returned."""
    return unquote(origin) if origin.startswith(S3) else to_path(unquote(urlsplit(origin).path).encode())


def spark_pixels(spark: SparkSession, paths: Sequence[str], link_roots: Sequence[str] = ()) -> dict[str, Row]:
    """Height, width, channels, mode and pixels of the files by path, as Spark's `image` source reads them.

    Files that are gone have none. The roots are those of `open_file`.
    """
    names = [name for path in paths if (name := spark_name(path))]
    if not names:
        return {}
    try:
        # One task: starting more takes longer than reading a few images.
        images = spark.read.format("image").option("dropInvalid", True).load(names).coalesce(1).select("image.*")
        rows = collected(images.withColumnRenamed("nChannels", "channels")).to_pylist()
    except (PySparkException, Py4JError):
        readable = [path for path in paths if is_readable(path, link_roots)]
        if len(readable) == len(paths):
            raise
        return spark_pixels(spark, readable, link_roots)  # the others were deleted after their thumbnails were made
    return {path_of_origin(row["origin"]): {name: row[name] for name in PIXELS} for row in rows}


def is_readable(path: str, link_roots: Sequence[str]) -> bool:
    """Whether the file is still there, and this account may read it."""
    try:
        with open_file(path, link_roots):
            return True
    except OSError:
        return False


def write_samples(delta_tables: DeltaTables, sample: Sequence[Row], limits: Limits) -> None:
    """Replace the table's rows by those of the sample; rows that are there and have a thumbnail are kept."""
    delta_tables.create(IMAGE_SAMPLES)
    wanted = {(row["path"], row["image_id"]): row for row in sample}
    there = delta_tables.read(IMAGE_SAMPLES, IMAGE_KEYS, pc.field("thumbnail").is_valid()).to_pylist()
    kept = wanted.keys() & {tuple(row.values()) for row in there}
    files = tuple(file.url for file in table_files(delta_tables.uri(IMAGE_SAMPLES)).files)
    old = NewRows(files, None, keys=tuple(IMAGE_KEYS), wanted=frozenset(kept))
    kept_rows = (
        row | {"label": wanted[row["path"], row["image_id"]]["label"]}
        for row in old.rows(IMAGE_SAMPLES.columns.fieldNames(), 0, 1)
    )
    with delta_tables.progress_line("sampled", len(wanted) - len(kept), "images") as progress:
        new = [row for key, row in wanted.items() if key not in kept]
        rows = chain(kept_rows, sample_rows(delta_tables, new, limits, progress))
        written = list(write_files(rows, delta_tables.uri(IMAGE_SAMPLES), file_layout(IMAGE_SAMPLES)))
    delta_tables.commit(IMAGE_SAMPLES, written, {}, mode="overwrite")


@dg.asset(
    deps=["raw_images", "image_files", "featured_images", "image_splits", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake"},
    pool="image_samples",
)
def image_samples(
    delta_tables: DeltaTables, image_folder: ImageFolder, sample_size: SampleSize
) -> dg.MaterializeResult:
    """A few images of each label to explore, with thumbnails and pixels as Spark's `image` source reads them.

    Large images are downscaled while they are decoded. Rows of images that stay in the sample are kept.

    The metadata describes all current images: charts of labels, formats and sizes, and duplicates.
    """
    before = delta_tables.snapshot(IMAGE_SAMPLES)
    files = delta_tables.read(IMAGE_FILES, ["path", "image_id", "length"], pc.field("state") == CURRENT)
    labels = read_labels(delta_tables, read_layout(delta_tables, image_folder))
    sample = sample_files(files.to_pylist(), labels, sample_size)
    there = delta_tables.read(IMAGE_SAMPLES, COMPARED_COLUMNS).to_pylist()
    if {tuple(row[name] for name in COMPARED_COLUMNS) for row in sample} != {tuple(row.values()) for row in there}:
        write_samples(delta_tables, sample, to_limits(image_folder))
    metadata = describe_once(
        delta_tables,
        IMAGE_SAMPLES.name,
        lambda: samples_metadata(delta_tables, image_folder.real_link_roots),
        tables=[IMAGE_SAMPLES, FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_FILES],
    )
    return delta_tables.materialized(IMAGE_SAMPLES, delta_tables.change_since(before, IMAGE_SAMPLES), **metadata)
