"""A sample of each label to explore, with Spark's pixels and thumbnails, and statistics of all images."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.data.folder_layout import read_layout
from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.data.inspection import CURRENT
from image_assets.data.labels import Labels, read_labels
from image_assets.images.charts import distributions, picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails, to_caption, to_thumbnail
from image_assets.images.formats import UnreadableImage
from image_assets.images.large_images import is_reduced
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SAMPLES, IMAGE_SPLITS
from resources.delta.arrow_rows import Row, map_rows
from resources.delta.delta_tables import DeltaTables
from resources.delta.unchanged import describe_once
from resources.files.file_system import SCHEME, read_content, to_name, to_path
from resources.files.image_folder import ImageFolder
from resources.files.s3 import SCHEME as S3

LISTED_GROUPS = 20
SHEET_GROUPS = 8  # on a contact sheet, one per row
PATHS_PER_GROUP = 4
STEPS_PER_DOUBLING = 4  # bars in a histogram for each doubling
PER_LABEL = 8
MAX_FILE_BYTES = 2_000_000  # decoded pixels take about twenty times as much
SAMPLE_PIXELS = 96  # side of the stored thumbnails
COMPARED_COLUMNS = ["path", "image_id", "label"]
PIXELS = ("height", "width", "channels", "mode", "data")
# Spark's image source treats such names as patterns or addresses; these files get a thumbnail, but no pixels.
UNSUPPORTED_NAME = re.compile(r"[%*?\[\]{}\\:]")
FILES_SCHEMA = "path string, image_id string, label string, length long"
THUMBNAILS = StructType([IMAGE_SAMPLES.columns[name] for name in ("path", "image_id", "label", "thumbnail")])


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


def duplicates_metadata(images: pd.DataFrame) -> dict[str, dg.MetadataValue]:
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
        pictures = thumbnails((path, None) for path in paths)
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


def samples_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the sample, and with charts and duplicates of all current images."""
    shown = delta_tables.read(IMAGE_SAMPLES, ["path", "label", "thumbnail"]).to_pylist()
    shown.sort(key=lambda row: (row["label"] or "", row["path"]))
    tiles = [(row["thumbnail"] or b"", to_caption(row["path"], row["label"])) for row in shown]
    sheet = picture_markdown(contact_sheet(tiles), "a sample of each label") if tiles else ""
    images = current_images(delta_tables)
    return {
        **({"images": dg.MetadataValue.md(sheet)} if sheet else {}),
        **distribution_metadata(images),
        **duplicates_metadata(images),
    }


def to_steps(images: pd.DataFrame, column: str) -> list[float]:
    """The column's values, rounded to STEPS_PER_DOUBLING steps for each doubling."""
    values = np.maximum(images[column].to_numpy(float), 1)
    return (2 ** (np.round(np.log2(values) * STEPS_PER_DOUBLING) / STEPS_PER_DOUBLING)).tolist()


def sample_files(files: Iterable[Row], labels: Labels) -> list[Row]:
    """A few current files of each label (path, image_id, label, length); stable while these files exist."""
    of_label: dict[str | None, list[Row]] = defaultdict(list)
    for file in sorted(files, key=lambda file: (file["image_id"], file["path"])):
        label = labels.of((file["path"], file["image_id"]))
        if len(of_label[label]) < PER_LABEL:
            of_label[label].append({**file, "label": label})
    return [file for label in of_label.values() for file in label]


def with_thumbnails(files: DataFrame, link_roots: Sequence[str]) -> DataFrame:
    """The files with a JPEG thumbnail each."""

    def thumbnail(file: Row) -> Iterator[Row]:
        try:
            content = read_content(file["path"], length=file["length"], link_roots=link_roots)
            large = is_reduced(content)
            small = thumbnails([(file["path"], content)])[0] if large else to_thumbnail(content, SAMPLE_PIXELS)
        except (OSError, UnreadableImage):  # deleted, or quarantined by the next step: a gray box on the sheet
            small = None
        yield {**{name: file[name] for name in ("path", "image_id", "label")}, "thumbnail": small}

    return map_rows(files, thumbnail, THUMBNAILS)


def spark_name(path: str) -> str | None:
    """The path in the form that Spark's image source reads; None if it cannot read it."""
    scheme = next((scheme for scheme in (SCHEME, S3) if path.startswith(scheme)), None)
    if scheme is None or UNSUPPORTED_NAME.search(path.removeprefix(scheme)):
        return None
    return f"file://{to_name(path).decode()}" if scheme == SCHEME else path


def path_of_origin(origin: str) -> str:
    """Our form of a path that Spark's image source returned."""
    return unquote(origin) if origin.startswith(S3) else to_path(unquote(urlsplit(origin).path).encode())


def spark_pixels(delta_tables: DeltaTables, paths: list[str]) -> DataFrame:
    """Height, width, channels, mode and pixels of the files by path, as Spark's `image` source reads them."""
    names = [name for path in paths if (name := spark_name(path))]
    if not names:
        return delta_tables.dataframe(IMAGE_SAMPLES).select("path", *PIXELS).limit(0)
    images = delta_tables.spark.read.format("image").option("dropInvalid", True).load(names).select("image.*")
    to_our_path = F.udf(path_of_origin, "string")
    return images.withColumnRenamed("nChannels", "channels").select(to_our_path("origin").alias("path"), *PIXELS)


@dg.asset(
    deps=["raw_images", "image_files", "featured_images", "image_splits", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake"},
    pool="image_samples",
)
def image_samples(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """A few images of each label to explore, with thumbnails and pixels as Spark's `image` source reads them.

    The metadata describes all current images: charts of labels, formats and sizes, and duplicates.
    """
    before = delta_tables.snapshot(IMAGE_SAMPLES)
    files = delta_tables.read(
        IMAGE_FILES,
        ["path", "image_id", "length"],
        (pc.field("state") == CURRENT) & (pc.field("length") <= MAX_FILE_BYTES),
    )
    sample = sample_files(files.to_pylist(), read_labels(delta_tables, read_layout(delta_tables, image_folder)))
    there = delta_tables.read(IMAGE_SAMPLES, COMPARED_COLUMNS).to_pylist()
    if {tuple(row[name] for name in COMPARED_COLUMNS) for row in sample} != {tuple(row.values()) for row in there}:
        pixels = spark_pixels(delta_tables, [row["path"] for row in sample])
        rows = [(row["path"], row["image_id"], row["label"], row["length"]) for row in sample]
        there_now = delta_tables.spark.createDataFrame(rows, FILES_SCHEMA)
        thumbnails = with_thumbnails(there_now, image_folder.real_link_roots)
        delta_tables.overwrite(thumbnails.join(pixels, on="path", how="left"), IMAGE_SAMPLES)
    metadata = describe_once(
        delta_tables,
        IMAGE_SAMPLES.name,
        lambda: samples_metadata(delta_tables),
        tables=[IMAGE_SAMPLES, FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_FILES],
    )
    return delta_tables.materialized(IMAGE_SAMPLES, delta_tables.change_since(before, IMAGE_SAMPLES), **metadata)
