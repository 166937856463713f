"""Opens an image of any format: its header and pages; the pixels are decoded page by page.

This file stands alone: a copy is stored with every model version.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from typing import BinaryIO, NamedTuple

import numpy as np
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

from .dicom import DicomImage
from .formats import (
    BOMBS,
    BROKEN,
    SIGNATURE_BYTES,
    TURNS,
    UnreadableImage,
    format_of,
    is_complete,
    jpeg_segments,
    not_an_image,
    size_of_jxl,
    to_one_line,
    undecodable,
)
from .tiff import pages_of
from .value_range import BYTES, ValueRange, find_range, to_8_bits

# Called directly: Image.open tries one after the other and hides why each of them failed.
OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
ORIENTATION = 0x0112  # the EXIF tag
PNG_SIGNATURE_BYTES = 8
MAX_CHUNK_BYTES = 1024**2  # of EXIF data, whatever length a PNG promises
MAX_WHOLE_PIXELS = 250_000_000  # of formats whose decoders have no smaller scale
FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers of a JPEG's frame headers
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of decoded pixels, by the number of channels
COLOR_OF_PNG = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # by color type, of those that can have 16 bits


@dataclass(frozen=True)
class Header:
    """An image's size as stored (before EXIF rotation), mode, format, EXIF orientation, and how its pixels are shown.

    `pages` counts its pages or frames. `black_value` and `white_value` are the pixel values that become black and
    white; before the pixels are decoded, they are those of 8 bits.
    """

    width: int
    height: int
    mode: str
    format: str
    orientation: int
    pages: int = 1
    black_value: float = BYTES.black
    white_value: float = BYTES.white

    def shown_in(self, found: ValueRange) -> "Header":
        """The header with the values that became black and white."""
        return replace(self, black_value=float(found.black), white_value=float(found.white))


class Page(NamedTuple):
    """The decoded pixels of a page with 8 bits per channel, the values that became black and white, and its profile."""

    image: Image.Image
    value_range: ValueRange = BYTES
    profile: bytes | None = None


@dataclass(frozen=True)
class Picture:
    """An opened image: its header is read, its pixels are not.

    Attributes:
        header: The size and format.
        decode: Decodes the page with this number.
        exif: The EXIF data, as far as they were found; empty if there are none.
        pillow: The image as Pillow opened it, if Pillow reads all of it as it is meant; None for other decoders.
        smaller: Decodes a page downscaled to a side or more, if the format has a decoder that does this in pieces.
        numbers: The number of each page in the file, if the file also holds images that are not pages.
    """

    header: Header
    decode: Callable[[int], Page]
    exif: Image.Exif
    pillow: ImageFile.ImageFile | None = None
    smaller: Callable[[int, int], Page] | None = None
    numbers: tuple[int, ...] = ()


def open_picture(file: BinaryIO) -> Picture:
    """Opens an image with the decoder that matches its first bytes; UnreadableImage if it is none."""
    file.seek(0)
    start = file.read(SIGNATURE_BYTES)
    file.seek(0)
    if why := not_an_image(start):
        raise UnreadableImage(why, "not_an_image" if start else "empty")
    name = str(format_of(start))
    try:
        picture = READERS.get(name, open_with_pillow)(file, name)
    except UnreadableImage:
        raise
    except BOMBS as error:
        raise UnreadableImage(f"{to_one_line(error)}: make the image smaller", "too_many_pixels") from error
    except (*BROKEN, ImportError) as error:
        what = f"it starts like a {name}, but its header"
        raise undecodable(what, error, complete=is_complete(file, name)) from error
    if picture.header.width < 1 or picture.header.height < 1:
        raise undecodable(f"it starts like a {name}, but its header", "it has no pixels", complete=None)
    return picture


def open_with_pillow(file: BinaryIO, name: str) -> Picture:
    """An image that Pillow reads."""
    return _picture(opener(name)(file, ""), name)


def opener(name: str) -> Callable[[BinaryIO, str], ImageFile.ImageFile]:
    """The class with which Pillow opens a format."""
    if name == "HEIF":
        import pi_heif

        return pi_heif.HeifImageFile
    if name == "AVIF":
        from PIL import AvifImagePlugin

        return AvifImagePlugin.AvifImageFile
    if name == "JPEG2000":
        from PIL import Jpeg2KImagePlugin

        return Jpeg2KImagePlugin.Jpeg2KImageFile
    return OPENERS[name]


def in_8_bits(image: Image.Image, bits: int | None = None) -> tuple[Image.Image, ValueRange]:
    """An image with 8 bits per channel, and the values that became black and white."""
    if not image.mode.startswith(("I", "F")):
        return image, BYTES
    values = np.asarray(image)
    found = find_range(values, bits=bits)
    return Image.fromarray(to_8_bits(values, found)), found


def _picture(image: ImageFile.ImageFile, name: str, bits: int | None = None) -> Picture:
    # MPO, which many cameras write, is a JPEG followed by a gain map, a depth map or a preview: these are not pages.
    pages = 1 if name == "JPEG" else int(getattr(image, "n_frames", 1))
    exif = _read_exif(image)
    width, height = image.size
    orientation = _orientation(exif)
    if name == "TIFF" and orientation >= 5:  # Pillow returns the rotated size for this format only
        width, height = height, width

    def decode(page: int) -> Page:
        if pages > 1:
            image.seek(page)
        image.load()
        pixels, found = in_8_bits(image, bits)
        return Page(pixels, found, image.info.get("icc_profile"))

    return Picture(Header(width, height, image.mode, name, orientation, pages), decode, exif, image)


def _read_exif(image: Image.Image) -> Image.Exif:
    try:
        # The getexif of PNG files would decode their pixels.
        return Image.Image.getexif(image)
    except BROKEN:
        return Image.Exif()


def _orientation(exif: Image.Exif) -> int:
    found = exif.get(ORIENTATION, 1)
    return int(found) if found in TURNS else 1


def _open_jpeg(file: BinaryIO, name: str) -> Picture:
    try:
        return open_with_pillow(file, name)
    except BROKEN:
        file.seek(0)
        content = file.read()
        if not is_complete(file, name):
            raise
        return _open_rare_jpeg(content)


def _open_rare_jpeg(content: bytes) -> Picture:
    """A JPEG that Pillow does not read: lossless, or with 12 bits."""
    bits, height, width, channels = _frame_of_jpeg(content)

    def decode(_: int) -> Page:
        import imagecodecs

        values = np.asarray(imagecodecs.jpeg_decode(content))
        if values.shape[:2] != (height, width):  # no pixels at all, for numbers of bits that no JPEG has
            raise ValueError(f"{values.shape[1]} x {values.shape[0]} pixels of {bits} bits were decoded")
        values = values[:, :, None] if values.ndim == 2 else values
        return Page(*from_samples(values, bits if bits in range(9, 16) else None))

    mode = MODES[channels] + (";16" if bits > 8 else "")
    return Picture(Header(width, height, mode, "JPEG", 1), decode, Image.Exif())


def _frame_of_jpeg(content: bytes) -> tuple[int, int, int, int]:
    """The bits per sample, height, width and number of channels in a JPEG's frame header."""
    for marker, offset, _ in jpeg_segments(BytesIO(content)):
        if marker in FRAME_HEADERS:
            return struct.unpack_from(">BHHB", content, offset)
    raise ValueError("it has no frame header")


def _open_jxl(file: BinaryIO, name: str) -> Picture:
    import imagecodecs

    file.seek(0)
    content = file.read()
    require_few_pixels(*size_of_jxl(content), name)
    # Decoded here, because nothing else reads the rest of the header: the file is in memory, and so are its pixels.
    # Only the first frame of an animation: to count its frames, all of them would have to be decoded.
    values = np.asarray(imagecodecs.jpegxl_decode(content, index=0))
    values = values[:, :, None] if values.ndim == 2 else values
    height, width, channels = values.shape
    wide = f";{values.dtype.itemsize * 8}" if values.dtype.itemsize > 1 else ""
    header = Header(width, height, MODES[channels] + wide, name, 1)
    return Picture(header, lambda _: Page(*from_samples(values)), Image.Exif())


def require_few_pixels(width: int, height: int, name: str) -> None:
    """Raises UnreadableImage if an image has too many pixels for a decoder that has no smaller scale."""
    if width * height > MAX_WHOLE_PIXELS:
        message = f"{width} x {height} pixels: expected at most {MAX_WHOLE_PIXELS:,} for {name}"
        raise UnreadableImage(f"{message}, which is decoded in full; make the image smaller", "too_many_pixels")


def from_samples(values: np.ndarray, bits: int | None = None) -> tuple[Image.Image, ValueRange]:
    """An image of samples (height, width, 1 to 4) with any type; with 2 or 4 samples, the last one is alpha."""
    alpha = values.shape[2] in (2, 4)
    colors = values[:, :, : values.shape[2] - alpha]
    found = find_range(colors, bits=bits)
    pixels = to_8_bits(np.ascontiguousarray(colors), found)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if alpha:
        opacity = values[:, :, -1]
        image.putalpha(Image.fromarray(to_8_bits(opacity, find_range(opacity))))
    return image, found


def _open_png(file: BinaryIO, name: str) -> Picture:
    image = opener(name)(file, "")
    chunks = dict(_png_chunks(file))
    if "exif" not in image.info and b"eXIf" in chunks:  # behind the pixels, where Pillow looks when it decodes them
        image.info["exif"] = b"Exif\0\0" + chunks[b"eXIf"]
    depth, color = chunks.get(b"IHDR", bytes(13))[8:10]
    bits = max(chunks[b"sBIT"][:3]) if chunks.get(b"sBIT") else None
    picture = _picture(image, name, bits)
    if depth != 16 or color == 0:
        return picture

    def decode(_: int) -> Page:  # Pillow drops the lower 8 bits of colors
        import imagecodecs

        file.seek(0)
        values = np.asarray(imagecodecs.png_decode(file.read()))
        return Page(*from_samples(values, bits), image.info.get("icc_profile"))

    header = replace(picture.header, mode=f"{COLOR_OF_PNG.get(color, 'RGB')};16")
    return replace(picture, header=header, decode=decode)


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The small chunks of a PNG by name, without those of its pixels."""
    position = PNG_SIGNATURE_BYTES
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            break
        length, chunk = int.from_bytes(head[:4], "big"), head[4:]
        if chunk in (b"IHDR", b"sBIT", b"eXIf"):
            yield chunk, file.read(min(length, MAX_CHUNK_BYTES))
        position += 12 + length
        if chunk == b"IEND":
            break
    file.seek(0)


def _open_tiff(file: BinaryIO, name: str) -> Picture:
    pillow = problem = None
    try:
        pillow = opener(name)(file, "")
    except BROKEN as error:
        problem = error
    try:
        pages = pages_of(file)
    except UnreadableImage:
        raise
    except BROKEN as error:
        if pillow is None:
            raise problem or error from error
        return _picture(pillow, name)
    if not pages:
        raise ValueError("it has no pages")
    first = pages[0]
    exif = _read_exif(pillow) if pillow else Image.Exif()

    def decode(number: int) -> Page:
        page = pages[number]
        if pillow is not None and page.index is not None and page.is_simple:
            try:
                pillow.seek(page.index)
                pillow.load()
                return Page(pillow.copy(), BYTES, page.profile)
            except BROKEN:  # perhaps a compression that only the other decoder knows
                page.require_complete(file)
        return Page(*page.image(file), page.profile)

    def smaller(number: int, side_pixels: int) -> Page:
        page = pages[number]
        return Page(*page.smaller_image(file, side_pixels), page.profile)

    simple = pillow is not None and first.is_simple
    mode = pillow.mode if simple and pillow is not None else first.mode
    header = Header(first.width, first.height, mode, name, first.orientation, len(pages))
    numbers = tuple(page.index or 0 for page in pages)
    return Picture(header, decode, exif, pillow if simple else None, smaller, numbers)


def _open_dicom(file: BinaryIO, name: str) -> Picture:
    image = DicomImage(file)
    header = Header(image.width, image.height, image.mode, name, 1, image.pages)
    return Picture(header, lambda page: Page(*image.image(page)), Image.Exif())


READERS: dict[str, Callable[[BinaryIO, str], Picture]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "TIFF": _open_tiff,
    "JXL": _open_jxl,
    "DICOM": _open_dicom,
}
