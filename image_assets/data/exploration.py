"""What the images that are there are like: how they are distributed, and which are there more than once."""

import dagster as dg
from pyspark.sql import Column, DataFrame
from pyspark.sql import Row as SparkRow
from pyspark.sql import functions as F

from image_assets.contact_sheets import thumbnails, to_caption
from image_assets.current_files import current_files
from image_assets.pictures import contact_sheet, distributions, to_markdown
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables
from resources.spark_session import cached

LISTED = 20  # groups in a table
SHOWN = 8  # groups on a contact sheet, one a row
MEMBERS = 4  # files of a group that are named and shown
STEPS = 4  # bars in a figure for each doubling


def current_images(delta_tables: DeltaTables) -> DataFrame:
    """The images whose files are there now, with their features and duplicate_group, without content."""
    features = ["path", "image_id", "label", "format", "width", "height", "length"]
    groups = delta_tables.read(IMAGE_SPLITS).select("path", "image_id", "duplicate_group")
    images = delta_tables.read(FEATURED_IMAGES).select(features)
    current = current_files(delta_tables.read(IMAGE_FILES))
    return images.join(current, on=["path", "image_id"], how="left_semi").join(
        groups, on=["path", "image_id"], how="left"
    )


def groups_of_several(images: DataFrame, by: str, *differing: str) -> DataFrame:
    """The groups by a column in which each of the others has several values: `files` and the first `members`."""
    several = [F.countDistinct(name).alias(f"different_{name}") for name in differing]
    members = F.slice(F.sort_array(F.collect_list(F.struct("path", "label", "length"))), 1, MEMBERS)
    groups = images.where(F.col(by).isNotNull()).groupBy(by)
    found = groups.agg(F.count(F.lit(1)).alias("files"), members.alias("members"), *several)
    return found.where(" AND ".join(f"different_{name} > 1" for name in differing)).select(
        F.col(by).alias("group"), "files", "members"
    )


def total_and_largest(groups: DataFrame) -> tuple[int, list[SparkRow]]:
    """How many groups there are, and those with the most files."""
    with cached(groups):
        return groups.count(), groups.orderBy(F.desc("files"), "group").limit(LISTED).collect()


def to_table(groups: list[SparkRow]) -> dg.TableMetadataValue:
    """The groups as a table: how many files, and where the first of them are."""
    columns = [dg.TableColumn("group"), dg.TableColumn("files", "int"), dg.TableColumn("paths")]
    records = [
        dg.TableRecord(
            {"group": row["group"], "files": row["files"], "paths": "\n".join(m["path"] for m in row["members"])}
        )
        for row in groups
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def duplicates(images: DataFrame) -> dict[str, dg.MetadataValue]:
    """Metadata with the same image under several paths, images that look the same, and a sheet of both."""
    exact, same = total_and_largest(groups_of_several(images, "image_id", "path"))
    near, alike = total_and_largest(groups_of_several(images, "duplicate_group", "image_id"))
    metadata = {
        "exact_duplicate_groups": dg.MetadataValue.int(exact),
        "near_duplicate_groups": dg.MetadataValue.int(near),
        "exact_duplicates": to_table(same),
        "near_duplicates": to_table(alike),
    }
    shown = [*same[: SHOWN // 2], *alike[: SHOWN // 2]]
    paths = [member["path"] for row in shown for member in row["members"]]
    if paths:
        looks = thumbnails((path, None) for path in paths)
        tiles = [(look, to_caption(path, None)) for look, path in zip(looks, paths, strict=True)]
        title = f"the largest of {exact:,} groups of the same image and {near:,} of near duplicates"
        metadata["duplicates"] = dg.MetadataValue.md(to_markdown(contact_sheet(tiles), title))
    return metadata


def distribution_figure(images: DataFrame) -> dict[str, dg.MetadataValue]:
    """Metadata with a figure of labels, formats and sizes, counted in Spark; nothing for no images."""
    labels = images.groupBy(F.coalesce("label", F.lit("no label"))).count().collect()
    if not labels:
        return {}
    formats = images.groupBy("format").count().dropna().collect()
    sizes = images.groupBy(to_step("width"), to_step("height")).count().dropna().collect()
    lengths = images.groupBy(to_step("length")).count().dropna().collect()
    picture = distributions(
        labels=dict(map(tuple, labels)),
        formats=dict(map(tuple, formats)),
        sizes={(width, height): count for width, height, count in sizes},
        lengths=dict(map(tuple, lengths)),
    )
    title = f"{sum(row['count'] for row in labels):,} images, {len(labels):,} labels"
    return {"distributions": dg.MetadataValue.md(to_markdown(picture, title))}


def to_step(column: str) -> Column:
    """The column's values rounded to a few steps for each doubling; null below 1."""
    return F.pow(F.lit(2.0), F.round(F.log2(column) * STEPS) / STEPS).alias(column)
