"""Rows of an earlier release get the columns that they lack."""

from dataclasses import replace

import pyarrow as pa
import pytest
from PIL import Image
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from image_assets.data.backfill import FILLED, backfill, batches
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_log import DataFile
from resources.delta.delta_tables import DeltaTables
from resources.files.image_folder import ImageFolder
from tests.support.image_files import saved
from tests.support.images import picture

OLD = replace(
    FEATURED_IMAGES,
    columns=StructType([field for field in FEATURED_IMAGES.columns if field.name not in FILLED]),
)


def photograph() -> bytes:
    tags = Image.Exif()
    tags[0x0110] = "EOS"
    return saved(picture(1), "JPEG", exif=tags)


@pytest.mark.spark
def test_rows_of_an_earlier_release_are_filled_in_once(delta_tables: DeltaTables, image_folder: ImageFolder) -> None:
    contents = {"a.jpg": photograph(), "b.gif": saved(picture(2), "GIF", save_all=True, append_images=[picture(3)])}
    for name, content in {**contents, "gone.jpg": None}.items():
        row = {"path": f"file:/nowhere/{name}", "image_id": name, "label": "ball", "length": 5, "content": content}
        schema = to_arrow_schema(OLD.columns)
        rows = pa.Table.from_pylist([{**dict.fromkeys(schema.names), **row}], schema)
        delta_tables.merge(rows, OLD, updates={})

    assert backfill(delta_tables, image_folder) == 3
    version = delta_tables.version(FEATURED_IMAGES)
    assert backfill(delta_tables, image_folder) == 0

    assert delta_tables.version(FEATURED_IMAGES) == version
    rows = {row.image_id: row for row in delta_tables.dataframe(FEATURED_IMAGES).collect()}
    assert {name: row.pages for name, row in rows.items()} == {"a.jpg": 1, "b.gif": 2, "gone.jpg": 0}
    assert (rows["a.jpg"].camera, rows["a.jpg"].white_value, rows["gone.jpg"].white_value) == ("EOS", 255, None)
    assert {name: row.content for name, row in rows.items() if row.content} == contents
    assert {row.label for row in rows.values()} == {"ball"}


def test_commits_have_a_bounded_size() -> None:
    files = [DataFile(str(number), size, 1) for number, size in enumerate((5, 5, 30, 1, 1))]
    assert [[file.size_bytes for file in batch] for batch in batches(files, 10)] == [[5, 5], [30], [1, 1]]
