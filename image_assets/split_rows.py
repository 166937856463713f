"""The images of one split that are current: what a training or an evaluation works on."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.current_files import current_files
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables
from resources.tables import Table


def split_rows(delta_tables: DeltaTables, split: str) -> DataFrame:
    """Path, image_id, label and label_index of the split's images whose files are there, unchanged."""
    current = current_files(delta_tables.read(IMAGE_FILES))
    assigned = delta_tables.read(IMAGE_SPLITS).where(F.col("split") == split)
    return assigned.join(current, on=["path", "image_id"], how="left_semi").select(
        "path", "image_id", "label", "label_index"
    )


def with_content(delta_tables: DeltaTables, rows: DataFrame, table: Table = FEATURED_IMAGES) -> DataFrame:
    """The rows with the images' content in a table; the rows are broadcast, so that no content is shuffled.

    Images whose content the table does not hold are left out: of those above the content limit it is the path only.
    """
    content = delta_tables.read(table).select("path", "image_id", "content").where("content IS NOT NULL")
    return content.join(F.broadcast(rows), on=["path", "image_id"], how="inner")


def digest(rows: DataFrame) -> str:
    """A short text that is the same for the same images under the same labels, in any order."""
    row = F.xxhash64("path", "image_id", "label")
    total = rows.agg(F.count(F.lit(1)).alias("rows"), F.bit_xor(row).alias("xor"), F.bit_xor(F.hash(row)).alias("low"))
    found = total.collect()[0]
    return f"{found['rows']}-{(found['xor'] or 0) % 2**64:016x}{(found['low'] or 0) % 2**32:08x}"


def training_labels(delta_tables: DeltaTables) -> list[str]:
    """The labels to tell apart: those with a current image in the training split, in the order of their numbers.

    ValueError when there are fewer than two.
    """
    numbered = split_rows(delta_tables, "training").select("label", "label_index").distinct().orderBy("label_index")
    labels = [row["label"] for row in numbered.collect()]
    if len(labels) < 2:
        raise ValueError(
            f"{len(labels)} label(s) to train on ({', '.join(labels) or 'none'}): a classifier needs at least two. "
            "Put photographs into at least two sub-folders of the landing folder, one for each label"
        )
    return labels
