"""The features of an image: its header, fingerprint, and warnings of the strict decoder."""

from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from image_assets.images.fingerprints import SIDE, to_fingerprint, to_thumbnail
from image_assets.images.formats import BROKEN
from image_assets.images.metadata import CameraData, read_camera_data
from image_assets.images.pictures import Header, Picture, open_picture
from image_assets.images.pixels import DEFAULT, Reading, decoded_picture, to_smaller_image, upright

FINGERPRINTED_PIXELS = 512  # the side to which large files are downscaled


@dataclass(frozen=True, kw_only=True)
class Features(CameraData, Header):
    """An image's header, what its camera recorded, and what decoding it shows.

    `perceptual_hash` and `mirrored_hash` are the hashes of the image and of its mirror image; `hashes` and `thumbnail`
    are its fingerprint; `decode_warning` is the strict decoder's objection to an image that could be decoded anyway.
    """

    perceptual_hash: str
    mirrored_hash: str
    hashes: bytes
    thumbnail: bytes
    decode_warning: str | None


def to_features(content: bytes, reading: Reading = DEFAULT) -> Features:
    """The features of an image, after a strict decode of all of it; raises UnreadableImage.

    Large JPEGs are decoded at a fraction of their size: all of their data is checked, and a thumbnail needs no more.
    """
    picture = open_picture(BytesIO(content))
    header, image, warning = decoded_picture(picture, content, "RGB", 2 * SIDE, reading)
    return _features(picture, header, image, warning or _checksum_warning(content, header))


def to_file_features(file: BinaryIO, reading: Reading = DEFAULT) -> Features:
    """The same for an open file of any size: it is downscaled while it is decoded."""
    picture = open_picture(file)
    header, small = to_smaller_image(file, picture, FINGERPRINTED_PIXELS, reading)
    return _features(picture, header, small, None)


def _features(picture: Picture, header: Header, image: Image.Image, decode_warning: str | None) -> Features:
    """The header, the camera's data and the fingerprint of an image, which is turned as stored."""
    # Rotating the thumbnail is cheaper than rotating the image, with the same result.
    fingerprint = to_fingerprint(upright(to_thumbnail(image), header))
    return Features(
        **vars(header),
        **vars(read_camera_data(picture.exif)),
        **vars(fingerprint),
        perceptual_hash=fingerprint.perceptual_hash,
        mirrored_hash=fingerprint.mirrored_hash,
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
