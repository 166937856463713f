"""What can be read off an image: header, perceptual hashes, and the strict decoder's objections."""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from image_assets.images.pixels import BROKEN, Header, decoded, opened, read_header, to_smaller, upright


@dataclass(frozen=True)
class Features(Header):
    """What can be read off an image by decoding all of it.

    `mirrored_hash` is the perceptual hash of the image with left and right exchanged; `decode_warning` is what the
    strict decoder objects to in an image that could be decoded nevertheless.
    """

    perceptual_hash: str
    mirrored_hash: str
    decode_warning: str | None


def to_features(content: bytes) -> Features:
    """The image's header and perceptual hashes, after a strict decode of the whole image."""
    header, gray, warning = decoded(content, "L")
    # The hashes look at 32 x 32 pixels: turning those is cheaper than turning the image, and comes to the same.
    gray = upright(_to_hashed_size(gray), header)
    return _features(header, gray, warning or _checksum_warning(content))


def to_file_features(file: BinaryIO) -> Features:
    """The same of an open file, however large: its pixels are scaled while they are decoded."""
    with opened(file, max_pixels=None) as image:
        header = read_header(image)
    with Image.open(BytesIO(to_smaller(file, 512))) as small:
        gray = _to_hashed_size(small.convert("L"))
    return _features(header, gray, None)


def _to_hashed_size(gray: Image.Image) -> Image.Image:
    return gray.resize((32, 32), Image.Resampling.LANCZOS)


def _features(header: Header, gray: Image.Image, decode_warning: str | None) -> Features:
    """The header and the perceptual hashes of the upright image, which is gray and of the size that is hashed."""
    import imagehash

    mirrored = gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Features(
        **asdict(header),
        perceptual_hash=str(imagehash.phash(gray)),
        mirrored_hash=str(imagehash.phash(mirrored)),
        decode_warning=decode_warning,
    )


def _checksum_warning(content: bytes) -> str | None:
    """What a PNG's checksums object to: its decoder does not look at them."""
    try:
        opened(BytesIO(content)).verify()
    except BROKEN as error:
        return str(error)
    return None
