"""The features of an image: its header, fingerprint, and warnings of the strict decoder."""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from image_assets.images.fingerprints import to_fingerprint, to_thumbnail
from image_assets.images.pixels import BROKEN, Header, decoded, opened, read_header, to_smaller, upright


@dataclass(frozen=True)
class Features(Header):
    """An image's header and what decoding it shows.

    `perceptual_hash` and `mirrored_hash` are the hashes of the image and of its mirror image; `hashes` and `thumbnail`
    are its fingerprint; `decode_warning` is the strict decoder's objection to an image that could be decoded anyway.
    """

    perceptual_hash: str
    mirrored_hash: str
    hashes: bytes
    thumbnail: bytes
    decode_warning: str | None


def to_features(content: bytes) -> Features:
    """The features of an image, after a strict decode of all of it; raises UnreadableImage."""
    header, image, warning = decoded(content, "RGB")
    # Rotating the thumbnail is cheaper than rotating the image, with the same result.
    thumbnail = upright(to_thumbnail(image), header)
    return _features(header, thumbnail, warning or _checksum_warning(content))


def to_file_features(file: BinaryIO) -> Features:
    """The same for an open file of any size: it is downscaled while it is decoded."""
    with opened(file, max_pixels=None) as image:
        header = read_header(image)
    with Image.open(BytesIO(to_smaller(file, 512))) as small:
        thumbnail = to_thumbnail(small)
    return _features(header, thumbnail, None)


def _features(header: Header, thumbnail: Image.Image, decode_warning: str | None) -> Features:
    """The header with the fingerprint of the upright image."""
    fingerprint = to_fingerprint(thumbnail)
    return Features(
        **asdict(header),
        perceptual_hash=fingerprint.perceptual_hash,
        mirrored_hash=fingerprint.mirrored_hash,
        hashes=fingerprint.hashes,
        thumbnail=fingerprint.thumbnail,
        decode_warning=decode_warning,
    )


def _checksum_warning(content: bytes) -> str | None:
    """An error in a PNG's checksums, which its decoder ignores."""
    try:
        opened(BytesIO(content)).verify()
    except BROKEN as error:
        return str(error)
    return None
