"""The images of one split that are current: what a training or an evaluation works on."""

from hashlib import sha256

import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.current_files import KEYS, current_files, current_keys
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables
from resources.tables import Table
from resources.thin_tables import ThinTables


def split_rows(delta_tables: DeltaTables, split: str) -> DataFrame:
    """Path, image_id, label and label_index of the split's labelled images whose files are there, unchanged."""
    current = current_files(delta_tables.read(IMAGE_FILES))
    assigned = delta_tables.read(IMAGE_SPLITS).where((F.col("split") == split) & F.col("label").isNotNull())
    return assigned.join(current, on=["path", "image_id"], how="left_semi").select(
        "path", "image_id", "label", "label_index"
    )


def with_content(delta_tables: DeltaTables, rows: DataFrame, table: Table = FEATURED_IMAGES) -> DataFrame:
    """The rows with the images' content in a table; the rows are broadcast, so that no content is shuffled.

    Images whose content the table does not hold are left out: of those above the content limit it is the path only.
    """
    content = delta_tables.read(table).select("path", "image_id", "content").where("content IS NOT NULL")
    return content.join(F.broadcast(rows), on=["path", "image_id"], how="inner")


def read_split(thin_tables: ThinTables, split: str) -> pd.DataFrame:
    """The same rows, without Spark."""
    columns = [*KEYS, "label", "label_index"]
    assigned = thin_tables.read(
        IMAGE_SPLITS, columns, (pc.field("split") == split) & pc.field("label").is_valid()
    ).to_pandas()
    return assigned.merge(current_keys(thin_tables), on=KEYS)


def digest(rows: pd.DataFrame) -> str:
    """A short text that is the same for the same images under the same labels, in any order."""
    told = "\n".join(sorted(map(repr, zip(rows["path"], rows["image_id"], rows["label"], strict=True))))
    return f"{len(rows)}-{sha256(told.encode()).hexdigest()[:24]}"


def training_labels(thin_tables: ThinTables) -> list[str]:
    """The labels to tell apart: those with a current image in the training split, in the order of their numbers.

    ValueError when there are fewer than two.
    """
    rows = read_split(thin_tables, "training")
    labels = [label for _, label in sorted(set(zip(rows["label_index"], rows["label"], strict=True)))]
    if len(labels) < 2:
        raise ValueError(
            f"{len(labels)} label(s) to train on ({', '.join(labels) or 'none'}): a classifier needs at least two. "
            "Put photographs into at least two sub-folders of the landing folder, one for each label"
        )
    return labels
