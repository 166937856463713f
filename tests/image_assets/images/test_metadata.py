"""What cameras record is read as it was meant, and invalid values are left out."""

from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image

from image_assets.images.features import to_features
from image_assets.images.metadata import CameraData, read_camera_data
from tests.support.image_files import heif
from tests.support.images import picture

Details = dict[int, Any]
NOON = "2024:06:01 12:30:05"


def exif(details: Details, place: Details | None = None, **texts: str) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Software] = "a test"  # a file with an Exif directory has tags beside it
    for name, text in texts.items():
        tags[ExifTags.Base[name]] = text
    tags.get_ifd(ExifTags.IFD.Exif).update(details)
    tags.get_ifd(ExifTags.IFD.GPSInfo).update(place or {})
    return tags


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "HEIC"])
def test_a_photographs_time_place_and_camera_are_features(name: str) -> None:
    tags = exif(
        {36867: NOON, 37521: "250", 36881: "+02:00", 42036: "iPhone 15 back camera"},
        {1: "S", 2: (33.0, 51.0, 30.0), 3: "E", 4: (151.0, 12.0, 36.0)},
        Make="Apple",
        Model="iPhone 15",
    )
    content = BytesIO()
    if name == "HEIC":
        content = BytesIO(heif(picture(1), exif=tags.tobytes()))
    else:
        picture(1).save(content, name, exif=tags)
    features = to_features(content.getvalue())
    assert features.captured_at == datetime(2024, 6, 1, 10, 30, 5, 250_000, UTC)
    assert (features.capture_zone, features.camera, features.lens) == (
        "+02:00",
        "Apple iPhone 15",
        "iPhone 15 back camera",
    )
    assert (features.latitude, features.longitude) == (pytest.approx(-33.858333), pytest.approx(151.21))


@pytest.mark.parametrize(
    ("details", "time", "zone"),
    [
        ({36867: NOON}, datetime(2024, 6, 1, 12, 30, 5, tzinfo=UTC), None),
        ({36868: NOON, 36882: "-03:30"}, datetime(2024, 6, 1, 16, 0, 5, tzinfo=UTC), "-03:30"),
        ({36867: NOON, 36881: "   :  "}, datetime(2024, 6, 1, 12, 30, 5, tzinfo=UTC), None),
        ({36867: "0000:00:00 00:00:00", 36868: NOON}, datetime(2024, 6, 1, 12, 30, 5, tzinfo=UTC), None),
        ({36867: "yesterday"}, None, None),
        ({36867: 5}, None, None),
        ({36867: "0001:01:01 00:00:00", 36881: "+02:00"}, None, None),
        ({36867: "9999:12:31 23:59:59", 37521: "9999999"}, None, None),
    ],
)
def test_a_time_without_a_zone_is_the_cameras_clock(details: Details, time: datetime | None, zone: str | None) -> None:
    found = read_camera_data(exif(details))
    assert (found.captured_at, found.capture_zone) == (time, zone)


@pytest.mark.parametrize(
    "place", [{}, {2: (91.0, 0.0, 0.0), 4: (10.0, 0.0)}, {2: "north", 4: None}, {2: (float("nan"), 0, 0)}, {2: ()}]
)
def test_an_invalid_place_is_left_out(place: Details) -> None:
    assert read_camera_data(exif({}, place)).latitude is None


def test_a_model_that_begins_with_the_make_is_not_doubled() -> None:
    assert read_camera_data(exif({}, Make="Canon", Model="Canon EOS R5\0\0")).camera == "Canon EOS R5"
    assert read_camera_data(exif({}, Model="EOS")).camera == "EOS"
    assert read_camera_data(Image.Exif()) == CameraData()


def test_a_text_too_long_to_be_a_name_is_left_out() -> None:
    found = read_camera_data(exif({36867: NOON, 42036: "lens " * 12_000}, Make="Canon", Model="x" * 60_000))
    assert (found.camera, found.lens, found.captured_at) == ("Canon", None, datetime(2024, 6, 1, 12, 30, 5, tzinfo=UTC))
    assert read_camera_data(exif({}, Model=f"EOS{' ' * 60_000}\0")).camera == "EOS"
