"""Bytes in, pixels out: validates, decodes and resizes images.

This file stands alone: a copy is stored with every model version and loaded from there.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO, UnsupportedOperation
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

if TYPE_CHECKING:
    import pyvips

# The first bytes of each format; for WebP, `format_of` checks the bytes after the container's length as well.
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WEBP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
SIGNATURE_BYTES = 12
# Called directly: Image.open tries one after the other and hides why each of them failed.
OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FORMATS = tuple(OPENERS)
MAX_PIXELS = 50_000_000
SMALLER_SIDE_PIXELS = 1024  # of images too large to decode in full: several times a network's input

# What Pillow raises for broken files: its own errors, and those of parsers that meet missing or invalid bytes.
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(AttributeError, AssertionError, RuntimeError, struct.error, zlib.error),
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # the last bytes of a complete file
END_BYTES = 64 * 1024  # how much may follow them
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Reason = Literal["empty", "not_an_image", "too_many_pixels", "undecodable", "decompression_bomb"]


class UnreadableImage(ValueError):
    """Content that is not a complete image within the limits; `reason` is one word."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)  # both are args, so that it survives pickling
        self.reason: Reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Header:
    """An image's size as stored (before EXIF rotation), mode, format and EXIF orientation."""

    width: int
    height: int
    mode: str
    format: str
    orientation: int


@dataclass(frozen=True)
class Crop:
    """A part of an image, in fractions of its width and height, optionally mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False

    def resized(self, image: Image.Image, side_pixels: int) -> Image.Image:
        """The part resized to a square, with antialiasing."""
        width, height = image.size
        box = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        square = image.resize((side_pixels, side_pixels), Image.Resampling.BILINEAR, box=box)
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else square


WHOLE = Crop(0, 0, 1, 1)


def format_of(start: bytes) -> str | None:
    """The image format by a file's first SIGNATURE_BYTES; None if it is not supported."""
    found = next((name for signature, name in SIGNATURES.items() if start.startswith(signature)), None)
    return None if found == "WEBP" and start[8:12] != b"WEBP" else found


def to_smaller(file: BinaryIO, side_pixels: int) -> bytes:
    """The upright image as PNG, downscaled to fit in a square while it is decoded, which takes little memory."""
    with opened(file, max_pixels=None) as image:
        header = read_header(image)
    if header.format == "BMP":  # which libvips does not read
        return _smaller_bmp(file, side_pixels)
    _require_end(file, header)
    # One thread: each needs its own address space, which a guarded process limits.
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    import pyvips

    file.seek(0)
    source = _source(file)  # a variable keeps it alive while libvips reads
    try:
        small = pyvips.Image.thumbnail_source(
            source, side_pixels, height=side_pixels, size="down", fail_on="error"
        ).colourspace("srgb")
        small = small.flatten(background=[255, 255, 255]) if small.hasalpha() else small
        return small.write_to_buffer(".png", compression=1, strip=True)
    except pyvips.Error as error:
        raise _undecodable(header, error) from error


def _source(file: BinaryIO) -> "pyvips.Source":
    """A libvips source for an open file: by descriptor or, if an object store has none, by callbacks."""
    import pyvips

    try:
        return pyvips.Source.new_from_descriptor(file.fileno())
    except UnsupportedOperation:
        source = pyvips.SourceCustom()
        source.on_read(file.read)
        source.on_seek(file.seek)
        return source


def _require_end(file: BinaryIO, header: Header) -> None:
    """Rejects a truncated file, which libvips would fill up with gray."""
    end = ENDS.get(header.format)
    file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
    if end and end not in file.read():
        raise _undecodable(header, f"it does not end with {end!r}: it is truncated")


def to_pixels(
    content: bytes, side_pixels: int, color: Literal["rgb", "gray"] = "rgb", crop: Crop | None = None
) -> np.ndarray:
    """Decodes an image, rotates it upright and resizes it with antialiasing; the aspect ratio is not kept.

    Args:
        content: The image file.
        side_pixels: Side of the square result.
        color: With "gray", the three channels are equal, and the same for an image and for its grayscale PNG.
        crop: The part to return, as fractions of the stored image; None for all of it.

    Returns:
        RGB pixels, uint8 of shape (side_pixels, side_pixels, 3).

    Raises:
        UnreadableImage: The content is not a complete image within the limits.
    """
    part = crop or WHOLE
    if color == "gray":  # decoded at full size and rotated first, as grayscale PNGs are
        header, image, _ = decoded(content, "L")
        gray = part.resized(upright(image, header), side_pixels)
        return np.repeat(np.array(gray)[:, :, None], 3, axis=2)
    header, image, _ = decoded(content, "RGB", min_side_pixels=2 * side_pixels)
    return np.array(upright(part.resized(image, side_pixels), header))


def to_file_pixels(
    file: BinaryIO, side_pixels: int, color: Literal["rgb", "gray"] = "rgb", *, max_bytes: int
) -> np.ndarray:
    """The same for an open file; one with more than `max_bytes` or MAX_PIXELS is downscaled while it is decoded."""
    with opened(file, max_pixels=None) as image:
        whole = image.width * image.height <= MAX_PIXELS and file.seek(0, os.SEEK_END) <= max_bytes
    file.seek(0)
    content = file.read() if whole else to_smaller(file, SMALLER_SIDE_PIXELS)
    return to_pixels(content, side_pixels, color)


def opened(file: BinaryIO, max_pixels: int | None = MAX_PIXELS) -> ImageFile.ImageFile:
    """Opens an image with the decoder that matches its first bytes; only the header is read."""
    file.seek(0)
    start = file.read(SIGNATURE_BYTES)
    file.seek(0)
    name = format_of(start)
    if not start:
        raise UnreadableImage("0 bytes: the file is empty; copy it again", "empty")
    if name is None:
        message = f"it starts with {start[:8]!r}: expected one of {', '.join(FORMATS)}; convert the file"
        raise UnreadableImage(message, "not_an_image")
    try:
        image = OPENERS[name](file, "")
    except BOMBS as error:
        message = f"{_to_one_line(error)}: expected at most {MAX_PIXELS:,} pixels; make the image smaller"
        raise UnreadableImage(message, "too_many_pixels") from error
    except BROKEN as error:
        message = f"it starts like a {name}, but its header is broken ({_to_one_line(error)})"
        raise UnreadableImage(f"{message}: {_remedy(error)}", _reason(error)) from error
    if max_pixels is not None and image.width * image.height > max_pixels:
        message = f"{image.width} x {image.height} pixels: expected at most {max_pixels:,}; make the image smaller"
        raise UnreadableImage(message, "too_many_pixels")
    return image


def _undecodable(header: Header, error: Exception | str) -> UnreadableImage:
    message = (
        f"{header.format} of {header.width} x {header.height} cannot be decoded completely ({_to_one_line(error)})"
    )
    return UnreadableImage(f"{message}: {_remedy(error)}", _reason(error))


def _to_one_line(error: Exception | str) -> str:
    """The library's message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: Exception | str) -> Reason:
    # Only the message tells that a PNG's texts or color profiles exceed Pillow's limits when inflated.
    return "decompression_bomb" if "MAX_TEXT" in str(error) else "undecodable"


def _remedy(error: Exception | str) -> str:
    return "save the image without text metadata" if _reason(error) == "decompression_bomb" else "copy the file again"


def read_header(image: ImageFile.ImageFile) -> Header:
    try:
        # The getexif of PNG files would decode their pixels.
        orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
    except BROKEN:
        orientation = 1
    orientation = int(orientation) if orientation in TURNS else 1
    width, height = image.size
    if image.format == "TIFF" and orientation >= 5:  # Pillow returns the rotated size for this format only
        width, height = height, width
    # MPO, which many cameras write, is a JPEG followed by more images.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    return Header(width, height, image.mode, name, orientation)


def decoded(
    content: bytes, mode: Literal["L", "RGB"], min_side_pixels: int = 0
) -> tuple[Header, Image.Image, str | None]:
    """The header, the decoded image (not rotated yet), and the strict decoder's warning, if any.

    With `min_side_pixels`, a JPEG may be decoded at a fraction of its size, with no side below it.
    """
    with opened(BytesIO(content)) as image:
        header = read_header(image)
        warning = None
        if header.format == "JPEG":
            try:
                decoded = _strictly_decoded(content, header, mode, min_side_pixels)
                if header.mode != "CMYK":
                    return header, decoded, None
            except ValueError as error:
                warning = str(error)
        try:
            image.draft(mode, None)  # decodes a JPEG directly to gray, as the strict decoder does
            image.load()
            return header, _in_mode(image, mode), warning
        except (*BROKEN, *BOMBS) as error:
            raise _undecodable(header, warning or error) from error


def _strictly_decoded(content: bytes, header: Header, mode: str, min_side_pixels: int) -> Image.Image:
    colors = {"L": "GRAY", "RGB": "RGB"}[mode] if header.mode != "CMYK" else "CMYK"
    pixels = simplejpeg.decode_jpeg(
        content,
        colors,
        min_width=min_side_pixels,
        min_height=min_side_pixels,
        min_factor=2 if min_side_pixels else 1,  # fractions above one half take longer than full size
    )
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image with 8 bits per channel: wider gray is scaled down, transparency is blended with white."""
    if image.mode.startswith(("I", "F")):
        image = _in_8_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _in_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    # 32-bit values have no fixed black and white: the image's lowest and highest values are used.
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    span = float(np.ptp(values)) or 1.0
    return Image.fromarray(np.rint((values - values.min()) * (255 / span)).astype(np.uint8))


def _smaller_bmp(file: BinaryIO, side_pixels: int) -> bytes:
    """A downscaled BMP, read in bands of rows; a compressed one is decoded in full."""
    with opened(file, max_pixels=None) as image:
        header = read_header(image)
        factor = max(1, max(image.size) // side_pixels)
        try:
            small = _reduced_bmp(image, file, factor) if image.tile[0].codec_name == "raw" else image.reduce(factor)
            small = _in_mode(small, "RGB")
        except BROKEN as error:
            raise _undecodable(header, error) from error
    small.thumbnail((side_pixels, side_pixels))
    content = BytesIO()
    small.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _reduced_bmp(image: ImageFile.ImageFile, file: BinaryIO, factor: int) -> Image.Image:
    """Uncompressed pixels, downscaled by an integer factor; rows are stored bottom-up unless the direction is 1."""
    offset = image.tile[0].offset
    raw_mode, stride, direction = cast("tuple[str, int, int]", image.tile[0].args)
    small = Image.new(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    if image.mode == "P" and image.palette is not None:
        kind, colors = image.palette.getdata()
        small.putpalette(colors, kind)
    file.seek(offset)
    for top in range(0, image.height, factor):
        rows = min(factor, image.height - top)
        pixels = file.read(stride * rows)
        band = Image.frombytes(image.mode, (image.width, rows), pixels, "raw", raw_mode, stride, direction)
        band = (
            band.resize((small.width, 1), Image.Resampling.NEAREST)
            if image.mode == "P"
            else band.reduce((factor, rows))
        )
        small.paste(band, (0, top // factor if direction == 1 else small.height - 1 - top // factor))
    return small


def upright(image: Image.Image, header: Header) -> Image.Image:
    # Pillow rotates TIFFs itself while decoding, but no other format.
    turn = TURNS.get(header.orientation) if header.format != "TIFF" else None
    return image if turn is None else image.transpose(turn)
