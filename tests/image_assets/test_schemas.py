"""Every table opens outside of Spark, with the columns that were promised."""

import json

import pytest
from deltalake import DeltaTable

from image_assets.schemas import FEATURED_IMAGES, TABLES
from resources.delta_tables import DeltaTables


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
