"""The features of an image: its header, perceptual hashes, and warnings of the strict decoder."""

from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from image_assets.images.formats import BROKEN
from image_assets.images.metadata import CameraData, read_camera_data
from image_assets.images.pictures import Header, Picture, open_picture
from image_assets.images.pixels import DEFAULT, Reading, decoded_picture, to_smaller_image, upright

HASHED_FROM_PIXELS = 512  # the side to which large files are downscaled


@dataclass(frozen=True, kw_only=True)
class Features(CameraData, Header):
    """An image's header, what its camera recorded, and what decoding it shows.

    `mirrored_hash` is the perceptual hash of the image flipped left to right; `decode_warning` is the strict decoder's
    objection to an image that could be decoded anyway.
    """

    perceptual_hash: str
    mirrored_hash: str
    decode_warning: str | None


def to_features(content: bytes, reading: Reading = DEFAULT) -> Features:
    """The features of an image, after a strict decode of all of it; raises UnreadableImage."""
    picture = open_picture(BytesIO(content))
    header, gray, warning = decoded_picture(picture, content, "L", reading=reading)
    return _features(picture, header, gray, warning or _checksum_warning(content, header))


def to_file_features(file: BinaryIO, reading: Reading = DEFAULT) -> Features:
    """The same for an open file of any size: it is downscaled while it is decoded."""
    picture = open_picture(file)
    header, small = to_smaller_image(file, picture, HASHED_FROM_PIXELS, reading)
    return _features(picture, header, small.convert("L"), None)


def _features(picture: Picture, header: Header, gray: Image.Image, decode_warning: str | None) -> Features:
    """The header with the perceptual hashes of the gray image, which is turned as stored."""
    import imagehash

    # The hashes use 32 x 32 pixels: rotating these is cheaper than rotating the image, with the same result.
    gray = upright(gray.resize((32, 32), Image.Resampling.LANCZOS), header)
    mirrored = gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Features(
        **vars(header),
        **vars(read_camera_data(picture.exif)),
        perceptual_hash=str(imagehash.phash(gray)),
        mirrored_hash=str(imagehash.phash(mirrored)),
        decode_warning=decode_warning,
    )


def _checksum_warning(content: bytes, header: Header) -> str | None:
    """An error in a PNG's checksums, which its decoder ignores."""
    if header.format != "PNG":
        return None
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except BROKEN as error:
        return str(error)
    return None
