"""Every table opens outside of Spark, with the columns that were promised."""

import json

import pytest
from deltalake import DeltaTable

from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, TABLES
from resources.delta.delta_tables import DeltaTables


def test_names_are_told_apart_and_keys_are_columns() -> None:
    assert len({table.name for table in TABLES}) == len(TABLES)
    for table in TABLES:
        assert set(table.keys) <= set(table.columns.fieldNames())
        assert all(field.metadata.get("comment") for field in table.columns), table.name


@pytest.mark.spark
def test_another_delta_reader_finds_every_table_with_its_columns(ingested_tables: DeltaTables) -> None:
    for table in TABLES:
        ingested_tables.create(table)
        found = json.loads(DeltaTable(ingested_tables.uri(table)).schema().to_json())
        assert found == json.loads(table.columns.json()), table.name
    featured = DeltaTable(ingested_tables.uri(FEATURED_IMAGES)).to_pyarrow_table()
    assert (featured.num_rows, featured.column_names) == (16, FEATURED_IMAGES.columns.fieldNames())


def test_columns_that_a_table_carries_lead_to_the_table_before_it() -> None:
    of_images = FEATURED_IMAGES.column_lineage.deps_by_column
    assert [column.asset_key.to_user_string() for column in of_images["content"]] == ["raw_images"]
    assert "width" not in of_images
    assert "label" not in IMAGE_PREDICTIONS.column_lineage.deps_by_column, "a predicted label is another column"
