"""The features of an image: its header, perceptual hashes, and warnings of the strict decoder."""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from image_assets.images.pixels import BROKEN, Header, decoded, opened, read_header, to_smaller, upright


@dataclass(frozen=True)
class Features(Header):
    """An image's header and what decoding it shows.

    `mirrored_hash` is the perceptual hash of the image flipped left to right; `decode_warning` is the strict decoder's
    objection to an image that could be decoded anyway.
    """

    perceptual_hash: str
    mirrored_hash: str
    decode_warning: str | None


def to_features(content: bytes) -> Features:
    """The features of an image, after a strict decode of all of it; raises UnreadableImage."""
    header, gray, warning = decoded(content, "L")
    # The hashes use 32 x 32 pixels: rotating these is cheaper than rotating the image, with the same result.
    gray = upright(_to_hashed_size(gray), header)
    return _features(header, gray, warning or _checksum_warning(content))


def to_file_features(file: BinaryIO) -> Features:
    """The same for an open file of any size: it is downscaled while it is decoded."""
    with opened(file, max_pixels=None) as image:
        header = read_header(image)
    with Image.open(BytesIO(to_smaller(file, 512))) as small:
        gray = _to_hashed_size(small.convert("L"))
    return _features(header, gray, None)


def _to_hashed_size(gray: Image.Image) -> Image.Image:
    return gray.resize((32, 32), Image.Resampling.LANCZOS)


def _features(header: Header, gray: Image.Image, decode_warning: str | None) -> Features:
    """The header with the perceptual hashes of the upright gray image, which has the size to hash."""
    import imagehash

    mirrored = gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Features(
        **asdict(header),
        perceptual_hash=str(imagehash.phash(gray)),
        mirrored_hash=str(imagehash.phash(mirrored)),
        decode_warning=decode_warning,
    )


def _checksum_warning(content: bytes) -> str | None:
    """An error in a PNG's checksums, which its decoder ignores."""
    try:
        opened(BytesIO(content)).verify()
    except BROKEN as error:
        return str(error)
    return None
