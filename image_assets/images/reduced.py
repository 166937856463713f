"""Images too large to decode in full: downscaled while they are decoded, which takes little memory.

This file stands alone: a copy is stored with every model version.
"""

import os
from io import BytesIO, UnsupportedOperation
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from PIL import Image, ImageFile

from .colors import in_mode
from .formats import BOMBS, BROKEN, ENDS, UnreadableImage, is_complete, undecodable
from .pictures import Header, Page, Picture, require_few_pixels

if TYPE_CHECKING:
    import pyvips

BY_LIBVIPS = ("JPEG", "PNG", "WEBP", "GIF")
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")


def smaller_image(file: BinaryIO, picture: Picture, side_pixels: int, page: int = 0) -> tuple[Header, Image.Image]:
    """An opened image in RGB, downscaled to fit in a square while it is decoded; turned as it is stored.

    Raises:
        UnreadableImage: It cannot be decoded completely, or has too many pixels to be decoded in full.
    """
    header = picture.header
    try:
        if header.format in ENDS and is_complete(file, header.format) is False:  # libvips would fill it up with gray
            raise ValueError(f"it does not end with {ENDS[header.format]!r}: it is truncated")
        found = _page(file, picture, side_pixels, page)
        small = in_mode(found.image, "RGB", found.profile)
    except UnreadableImage:
        raise
    except (*BROKEN, *BOMBS, ImportError) as error:
        raise undecodable(describe(header), error, complete=is_complete(file, header.format)) from error
    small.thumbnail((side_pixels, side_pixels))
    return header.shown_in(found.value_range), small


def describe(header: Header) -> str:
    """The format and size, for messages."""
    return f"{header.format} of {header.width} x {header.height}"


def _page(file: BinaryIO, picture: Picture, side_pixels: int, page: int) -> Page:
    header, image = picture.header, picture.pillow
    if header.format == "BMP" and image is not None:  # which libvips does not read
        return Page(_smaller_bmp(image, file, side_pixels))
    if header.format == "JPEG" and image is not None and header.mode == "CMYK":  # libvips would change its colors
        image.draft(None, (side_pixels, side_pixels))
        return picture.decode(page)
    if header.format == "JPEG2000" and image is not None:
        scalable: Any = image  # where the plugin documents an attribute, `reduce`, images have a method
        scalable.reduce = max(0, (max(header.width, header.height) // side_pixels).bit_length() - 1)
        return picture.decode(page)
    animated_png = header.format == "PNG" and header.pages > 1  # of which libvips reads the first frame only
    is_fax = header.format == "TIFF" and header.mode == "1"  # compressed as tifffile does not read it
    by_libvips = is_fax or (header.format in BY_LIBVIPS and not animated_png)
    if by_libvips and image is not None and header.mode in EIGHT_BITS:
        number = picture.numbers[page] if picture.numbers else page
        return Page(_by_libvips(file, header, side_pixels, number), profile=image.info.get("icc_profile"))
    if picture.smaller:
        return picture.smaller(page, side_pixels)
    require_few_pixels(header.width, header.height, header.format)
    return picture.decode(page)


def _by_libvips(file: BinaryIO, header: Header, side_pixels: int, page: int) -> Image.Image:
    # One thread: each needs its own address space, which a guarded process limits.
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    import pyvips

    file.seek(0)
    source = _source(file)  # a variable keeps it alive while libvips reads
    options: dict[str, Any] = {"page": page} if header.pages > 1 else {}
    if header.format == "JPEG":
        times = max(header.width, header.height) // (2 * side_pixels)
        options["shrink"] = next((shrink for shrink in (8, 4, 2) if shrink <= times), 1)
    try:
        # In two steps: `thumbnail_source` would fill up what a damaged file lacks, whatever `fail_on` says.
        whole = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error", **options)
        # Turned upright later, except for TIFF, as when decoded in full.
        small = whole.thumbnail_image(
            side_pixels, height=side_pixels, size="down", no_rotate=header.format != "TIFF"
        ).colourspace("srgb")
        content = small.write_to_buffer(".png", compression=1, strip=True)
    except pyvips.Error as error:
        raise ValueError(str(error)) from error
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        image.load()
        return image


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


def _smaller_bmp(image: ImageFile.ImageFile, file: BinaryIO, side_pixels: int) -> Image.Image:
    """A downscaled BMP, read in bands of rows; a compressed one is decoded in full."""
    factor = max(1, max(image.size) // side_pixels)
    return _reduced_bmp(image, file, factor) if image.tile[0].codec_name == "raw" else image.reduce(factor)


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
