"""Tests of the homes that benchmarks reuse."""

import image_assets.data.raw_images
import image_assets.images.pixels
import image_assets.schemas
import resources.delta.delta_tables
from benchmarks.homes import code_files

WRITES_TABLES = (image_assets.schemas, image_assets.images.pixels, image_assets.data.raw_images)


def test_a_home_is_rebuilt_after_a_change_to_any_code_that_writes_its_tables() -> None:
    files = {str(file) for file in code_files()}
    assert {module.__file__ for module in (*WRITES_TABLES, resources.delta.delta_tables)} <= files
