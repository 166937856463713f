"""Bytes in, pixels out: validates, decodes and resizes images.

This file stands alone with those that it imports: copies are stored with every model version and loaded from there.
"""

import os
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np
import simplejpeg
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from .colors import in_mode, needs_colors
from .formats import BOMBS, BROKEN, ENDS, UnreadableImage, is_complete, turned, undecodable
from .pictures import Header, Page, Picture, open_picture
from .reduced import describe, smaller_image

MAX_PIXELS = 50_000_000  # by default
SMALLER_SIDE_PIXELS = 1024  # of files too large to read in full: several times a network's input
MAX_TIMES = 10  # more times the pixel limit are refused, unless the file is large as well
MAX_PIXELS_PER_BYTE = 20
REDUCED_SIDE_PIXELS = 2048  # of images with more than MAX_PIXELS
BLANK_SIDE_PIXELS = 64
BLANK_LEVELS = 8  # a page whose gray levels differ by less, averaged over squares, shows nothing
MAX_BLANK_PAGES = 50  # looked through for one that is not blank
NO_END_MARKER = "the end marker is missing; all pixels are there"
BILINEAR = ResizeAlg.convolution(FilterType.bilinear)
# Sides twice as long are reduced first: the resizer needs 16 bytes per pixel of a side, and grows before it shrinks.
LONG_SIDE_PIXELS = 100_000


PageChoice = Literal["non_blank", "first"]


@dataclass(frozen=True)
class Reading:
    """How images are read: which page of several, and the number of pixels above which they are downscaled."""

    page: PageChoice = "non_blank"
    max_pixels: int = MAX_PIXELS


DEFAULT = Reading()


@dataclass(frozen=True)
class Crop:
    """A part of an image, in fractions of its width and height, optionally mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False

    def resized(self, image: Image.Image, side_pixels: int) -> Image.Image:
        """The part of an image in L or RGB, resized to a square as by Pillow's antialiased bilinear filter.

        SIMD instructions make it several times as fast; each value differs from Pillow's by one level at most.
        """
        if max(image.size) >= 2 * LONG_SIDE_PIXELS:
            image = image.reduce((max(1, image.width // LONG_SIDE_PIXELS), max(1, image.height // LONG_SIDE_PIXELS)))
        width, height = image.size
        left, top = self.left * width, self.top * height
        box = CropBox(left, top, min(self.right * width, width) - left, min(self.bottom * height, height) - top)
        square = Image.new(image.mode, (side_pixels, side_pixels))
        Resizer().resize_pil(image, square, ResizeOptions(resize_alg=BILINEAR, crop_box=box, use_alpha=False))
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else square


WHOLE = Crop(0, 0, 1, 1)


def to_pixels(
    content: bytes,
    side_pixels: int,
    color: Literal["rgb", "gray"] = "rgb",
    crop: Crop | None = None,
    reading: Reading = DEFAULT,
) -> np.ndarray:
    """Decodes an image, rotates it upright and resizes it with antialiasing; the aspect ratio is not kept.

    Args:
        content: The image file.
        side_pixels: Side of the square result.
        color: With "gray", the three channels are equal, and the same for an image and for its grayscale PNG.
        crop: The part to return, as fractions of the stored image; None for all of it.
        reading: How the image is read.

    Returns:
        RGB pixels, uint8 of shape (side_pixels, side_pixels, 3).

    Raises:
        UnreadableImage: The content is not a complete image.
    """
    part = crop or WHOLE
    if color == "gray":  # decoded at full size and rotated first, as grayscale PNGs are
        header, image, _ = decoded(content, "L", reading=reading)
        gray = part.resized(upright(image, header), side_pixels)
        return np.repeat(np.array(gray)[:, :, None], 3, axis=2)
    header, image, _ = decoded(content, "RGB", 2 * side_pixels, reading)
    return np.array(upright(part.resized(image, side_pixels), header))


def to_file_pixels(
    file: BinaryIO,
    side_pixels: int,
    color: Literal["rgb", "gray"] = "rgb",
    *,
    max_bytes: int,
    reading: Reading = DEFAULT,
) -> np.ndarray:
    """The same for an open file; one with more than `max_bytes` is downscaled while it is decoded."""
    whole = file.seek(0, os.SEEK_END) <= max_bytes
    file.seek(0)
    content = file.read() if whole else to_smaller(file, SMALLER_SIDE_PIXELS, reading)
    return to_pixels(content, side_pixels, color, reading=reading)


def to_smaller(file: BinaryIO, side_pixels: int, reading: Reading = DEFAULT) -> bytes:
    """The upright image as PNG, downscaled to fit in a square while it is decoded, which takes little memory."""
    header, small = to_smaller_image(file, open_picture(file), side_pixels, reading)
    content = BytesIO()
    upright(small, header).save(content, "PNG", compress_level=1)
    return content.getvalue()


def to_smaller_image(
    file: BinaryIO, picture: Picture, side_pixels: int, reading: Reading = DEFAULT
) -> tuple[Header, Image.Image]:
    """The header, and the image in RGB (not rotated yet), downscaled while it is decoded; raises UnreadableImage.

    `picture` is the file as `open_picture` opened it.
    """
    _require_plausible(picture.header, file.seek(0, os.SEEK_END), reading)
    for page in _candidates(picture, reading):
        header, small = smaller_image(file, picture, side_pixels, page)
        if picture.header.pages == 1 or not _is_blank(small):
            return header, small
    return smaller_image(file, picture, side_pixels)


def read_header(file: BinaryIO) -> Header:
    """An image's header; its pixels are not decoded, except those of JPEG XL. Raises UnreadableImage."""
    return open_picture(file).header


def decoded(
    content: bytes, mode: Literal["L", "RGB"], min_side_pixels: int = 0, reading: Reading = DEFAULT
) -> tuple[Header, Image.Image, str | None]:
    """The header, the decoded image (not rotated yet), and the strict decoder's warning, if any.

    With `min_side_pixels`, a JPEG may be decoded at a fraction of its size, with no side below it. An image with more
    pixels than `reading` allows is downscaled while it is decoded, to a side of about REDUCED_SIDE_PIXELS.
    """
    return decoded_picture(open_picture(BytesIO(content)), content, mode, min_side_pixels, reading)


def decoded_picture(
    picture: Picture, content: bytes, mode: Literal["L", "RGB"], min_side_pixels: int = 0, reading: Reading = DEFAULT
) -> tuple[Header, Image.Image, str | None]:
    """The same for an image that `open_picture` opened."""
    header = picture.header
    too_large = header.width * header.height > reading.max_pixels
    _require_plausible(header, len(content), reading)
    if header.format == "JPEG" and picture.pillow is not None:
        return _decoded_jpeg(content, picture, mode, min_side_pixels, too_large=too_large)
    if too_large:
        header, small = to_smaller_image(BytesIO(content), picture, REDUCED_SIDE_PIXELS, reading)
        return header, small if mode == "RGB" else small.convert(mode), None
    try:
        page = _chosen_page(picture, reading)
        return header.shown_in(page.value_range), in_mode(page.image, mode, page.profile), None
    except UnreadableImage:
        raise
    except (*BROKEN, *BOMBS, ImportError) as error:
        complete = is_complete(BytesIO(content), header.format)
        raise undecodable(describe(header), error, complete=complete) from error


def _require_plausible(header: Header, length: int, reading: Reading) -> None:
    """Raises UnreadableImage for a small file with a huge number of pixels, which is made to exhaust its readers."""
    limit = max(MAX_TIMES * reading.max_pixels, MAX_PIXELS_PER_BYTE * length)
    if header.width * header.height > limit:
        found = f"{header.width} x {header.height} pixels in {length:,} bytes: expected at most {limit:,} pixels"
        raise UnreadableImage(f"{found}; make the image smaller", "too_many_pixels")


def _candidates(picture: Picture, reading: Reading) -> range:
    """The pages to choose from, in order."""
    return range(1 if reading.page == "first" else min(picture.header.pages, MAX_BLANK_PAGES))


def _chosen_page(picture: Picture, reading: Reading) -> Page:
    """The first page, or the first that is not blank; the first if all are."""
    pages = _candidates(picture, reading)
    if len(pages) == 1:
        return picture.decode(0)
    for number in pages:
        page = picture.decode(number)
        if not _is_blank(in_mode(page.image, "RGB")):
            return page
    return picture.decode(0)


def _is_blank(image: Image.Image) -> bool:
    # In color: red on an equally bright green would vanish in gray.
    squares = image.resize((BLANK_SIDE_PIXELS, BLANK_SIDE_PIXELS), Image.Resampling.BOX)
    return bool(np.ptp(np.asarray(squares), axis=(0, 1)).max() < BLANK_LEVELS)


def _decoded_jpeg(
    content: bytes, picture: Picture, mode: Literal["L", "RGB"], min_side_pixels: int, *, too_large: bool
) -> tuple[Header, Image.Image, str | None]:
    header, image = picture.header, picture.pillow
    assert image is not None
    profile = image.info.get("icc_profile") if needs_colors(image) else None
    colors = "RGB" if profile and header.mode != "L" else mode
    sides = (min_side_pixels, min_side_pixels)
    if too_large and not min_side_pixels:
        wide = header.width >= header.height
        sides = (REDUCED_SIDE_PIXELS, 1) if wide else (1, REDUCED_SIDE_PIXELS)
    warning = None
    try:
        pixels, warning = _strictly_decoded(content, header, colors, sides)
        if header.mode != "CMYK":
            return header, in_mode(pixels, mode, profile), warning
    except ValueError as error:
        warning = str(error)
    try:
        image.draft(colors if header.mode != "CMYK" else None, sides if sides[0] else None)
        image.load()
        return header, in_mode(image, mode, profile), warning
    except (*BROKEN, *BOMBS) as error:
        complete = is_complete(BytesIO(content), header.format)
        raise undecodable(describe(header), warning or error, complete=complete) from error


def _strictly_decoded(
    content: bytes, header: Header, mode: str, min_sides: tuple[int, int]
) -> tuple[Image.Image, str | None]:
    """The image, and a warning if only its end marker is missing; a ValueError if anything else is wrong with it."""
    try:
        return _strict_jpeg(content, header, mode, min_sides), None
    except ValueError:
        if is_complete(BytesIO(content), header.format):
            raise
    return _strict_jpeg(content + ENDS[header.format], header, mode, min_sides), NO_END_MARKER


def _strict_jpeg(content: bytes, header: Header, mode: str, min_sides: tuple[int, int]) -> Image.Image:
    pixels = simplejpeg.decode_jpeg(
        content,
        {"L": "GRAY", "RGB": "RGB"}[mode] if header.mode != "CMYK" else "CMYK",
        min_width=min_sides[0],
        min_height=min_sides[1],
        min_factor=2 if min_sides[0] else 1,  # fractions above one half take longer than full size
    )
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


def upright(image: Image.Image, header: Header) -> Image.Image:
    """A decoded image, turned upright; TIFFs are already, because Pillow turns them while it decodes."""
    return image if header.format == "TIFF" else turned(image, header.orientation)
