"""What a camera recorded with an image: when, where and with what it was taken (runs in executors)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta, timezone
from typing import Any

from PIL import ExifTags, Image

from image_assets.images.formats import BROKEN

TIMES = (  # the tags of a time, its fraction of a second and its zone, the best first
    (ExifTags.Base.DateTimeOriginal, ExifTags.Base.SubsecTimeOriginal, ExifTags.Base.OffsetTimeOriginal),
    (ExifTags.Base.DateTimeDigitized, ExifTags.Base.SubsecTimeDigitized, ExifTags.Base.OffsetTimeDigitized),
)
ZONE = re.compile(r"([+-])(\d\d):?(\d\d)")
MAX_LENGTH = 200  # characters; a longer text, of up to 64 KB, names no camera, lens or time


@dataclass(frozen=True)
class CameraData:
    """What a camera recorded; None where it did not, or recorded something invalid.

    `captured_at` is in UTC if `capture_zone` is known, such as +02:00, and otherwise the time on the camera's clock.
    `latitude` and `longitude` are in degrees, negative in the south and west.
    """

    captured_at: datetime | None = None
    capture_zone: str | None = None
    camera: str | None = None
    lens: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_camera_data(exif: Image.Exif) -> CameraData:
    """The camera's data in an image's EXIF data."""
    if not exif:  # as in most images from the web
        return CameraData()
    try:
        details, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    except BROKEN:
        return CameraData()
    captured_at, zone = _capture_time(details)
    return CameraData(
        captured_at=captured_at,
        capture_zone=zone,
        camera=_camera(_text(exif.get(ExifTags.Base.Make)), _text(exif.get(ExifTags.Base.Model))),
        lens=_text(details.get(ExifTags.Base.LensModel)),
        latitude=_degrees(place, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, limit=90),
        longitude=_degrees(place, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, limit=180),
    )


def _capture_time(details: Mapping[int, Any]) -> tuple[datetime | None, str | None]:
    for time_tag, fraction_tag, zone_tag in TIMES:
        try:
            time = datetime.strptime(_text(details.get(time_tag)) or "", "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError:  # missing, or zeros from a camera whose clock is not set
            continue
        if time.year in (MINYEAR, MAXYEAR):  # a zone or a fraction could move it out of the range of datetime
            continue
        fraction = _text(details.get(fraction_tag)) or ""
        if fraction.isdecimal():
            time += timedelta(seconds=float(f"0.{fraction}"))
        sign = ZONE.fullmatch(_text(details.get(zone_tag)) or "")
        if sign is None or int(sign[2]) > 14 or int(sign[3]) > 59:
            return time, None
        offset = timedelta(hours=int(sign[2]), minutes=int(sign[3])) * (-1 if sign[1] == "-" else 1)
        return time.replace(tzinfo=timezone(offset)).astimezone(UTC), f"{sign[1]}{sign[2]}:{sign[3]}"
    return None, None


def _camera(make: str | None, model: str | None) -> str | None:
    """Make and model; many models begin with the make."""
    if make and model and not model.lower().startswith(make.lower()):
        return f"{make} {model}"
    return model or make


def _text(value: Any) -> str | None:
    """A tag's text without the zero bytes and spaces that fill it up; None if it is too long to be a name."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return None
    text = " ".join(value.partition("\0")[0].split())
    return text if 0 < len(text) <= MAX_LENGTH else None


def _degrees(place: Mapping[int, Any], tag: int, reference: int, *, limit: float) -> float | None:
    try:
        degrees, minutes, seconds = (float(part) for part in (*place[tag], 0, 0)[:3])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    angle = degrees + minutes / 60 + seconds / 3600
    if not (math.isfinite(angle) and 0 <= angle <= limit):
        return None
    return -angle if _text(place.get(reference)) in ("S", "W") else angle
