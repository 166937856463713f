"""A split's rows are those of current files, and their digest tells them apart."""

import pandas as pd
import pytest
from pyspark.sql import functions as F

from image_assets.data.split_rows import read_split, split_digest, split_rows, training_labels, with_content
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables


@pytest.mark.spark
def test_a_split_holds_the_images_whose_files_are_there_unchanged(ingested_tables: DeltaTables) -> None:
    rows = split_rows(ingested_tables, "training")
    assigned = ingested_tables.dataframe(IMAGE_SPLITS).where("split = 'training'")
    assert sorted(rows.collect()) == sorted(assigned.select(rows.columns).collect())
    before = read_split(ingested_tables, "training")
    assert sorted(before.itertuples(index=False, name=None)) == sorted(map(tuple, rows.collect()))

    gone, replaced, kept = rows.orderBy("path").limit(3).collect()
    states = ingested_tables.dataframe(IMAGE_FILES)
    ingested_tables.overwrite(
        states.withColumn("state", F.when(F.col("path") == gone.path, "missing").otherwise(F.col("state"))).withColumn(
            "image_id", F.when(F.col("path") == replaced.path, "0" * 64).otherwise(F.col("image_id"))
        ),
        IMAGE_FILES,
    )
    left = {row.path for row in split_rows(ingested_tables, "training").collect()}
    assert {row.path for row in assigned.collect()} - left == {gone.path, replaced.path}
    assert kept.path in left
    after = read_split(ingested_tables, "training")
    assert sorted(after["path"]) == sorted(left)
    assert split_digest(after) != split_digest(before)
    assert training_labels(ingested_tables) == ["ball", "cube"]


@pytest.mark.spark
def test_content_comes_with_its_own_row(ingested_tables: DeltaTables) -> None:
    rows = split_rows(ingested_tables, "test")
    contents = {row.path: row.content for row in ingested_tables.dataframe(FEATURED_IMAGES).collect()}
    found = {row.path: row.content for row in with_content(ingested_tables, rows).collect()}
    assert found == {row.path: contents[row.path] for row in rows.collect()} != {}


def test_the_digest_is_of_images_and_labels_in_any_order() -> None:
    rows = pd.DataFrame({"path": ["a", "b", "c"], "image_id": ["1", "2", "3"], "label": ["ball", "cube", "ball"]})
    assert split_digest(rows.iloc[::-1]) == split_digest(rows)
    other_label = rows.assign(label=rows["label"].replace("ball", "cone"))
    twice = pd.concat([rows, rows.head(1), rows.head(1)])
    assert len({split_digest(some) for some in (rows, other_label, twice, rows.head(0))}) == 4
