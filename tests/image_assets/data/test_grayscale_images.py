"""The images in gray carry what the next step needs."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES
from resources.delta.delta_tables import DeltaTables

CARRIED = ["path", "image_id", "label", "label_index"]


@pytest.mark.spark
def test_each_image_is_there_in_gray_with_its_label(ingested_tables: DeltaTables) -> None:
    colored, gray = (
        ingested_tables.dataframe(table).orderBy("path").collect() for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES)
    )
    assert [[row[name] for name in CARRIED] for row in gray] == [[row[name] for name in CARRIED] for row in colored]
    for before, after in zip(colored, gray, strict=True):
        with Image.open(BytesIO(before.content)) as image, Image.open(BytesIO(after.content)) as converted:
            assert (converted.format, converted.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(converted), np.asarray(image.convert("L")))
