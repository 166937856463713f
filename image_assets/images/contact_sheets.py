"""Contact sheets: thumbnails with captions, shown in the metadata of materializations."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from io import BytesIO
from typing import TypeVar
from urllib.parse import unquote

from PIL import Image, ImageDraw, ImageFile, ImageFont

from image_assets.images.fonts import Font, dejavu_sans, fonts_for, lacking
from image_assets.images.formats import BOMBS, BROKEN, UnreadableImage
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import scaled_content
from image_assets.images.pictures import OPENERS, Header
from image_assets.images.pixels import decoded, upright
from resources.files.file_system import open_file

MAX_BYTES = 100_000  # Dagster stores pictures in its event log and loads them with every page that lists events
TILE_PIXELS = 112  # side of an image on a sheet
GAP_PIXELS = 8
MIN_TILE_PIXELS = 48
LINE_PIXELS = 15
CAPTION_LINES = 2
THUMBNAIL_PIXELS = 2 * TILE_PIXELS
THUMBNAIL_SECONDS = 10  # an image that takes longer is shown as a gray box
THUMBNAIL_MEMORY_BYTES = 1024**3

Item = TypeVar("Item")


def contact_sheet(images: Sequence[tuple[bytes, str]], side_pixels: int = TILE_PIXELS, columns: int = 8) -> bytes:
    """Thumbnails in rows, each with its caption below, as one JPEG.

    Images that cannot be decoded become gray boxes. With more images, quality and then size decrease, so that the sheet
    keeps its width and about MAX_BYTES.
    """
    sheet = _to_sheet(images, side_pixels, columns) if images else _nothing()
    for quality in (88, 75, 60, 45, 35):
        picture = BytesIO()
        sheet.save(picture, "JPEG", quality=quality, optimize=True)
        if picture.tell() <= MAX_BYTES:
            return picture.getvalue()
    if side_pixels <= MIN_TILE_PIXELS:
        return picture.getvalue()
    return contact_sheet(images, side_pixels * 3 // 4, columns * 4 // 3)


def thumbnails(images: Iterable[tuple[str, bytes | None]], link_roots: Sequence[str] = ()) -> list[bytes]:
    """A JPEG thumbnail for each path and content (None: read from the path); empty if that fails.

    They are made in a guarded process, because the images may not have been decoded before. Links to the `link_roots`
    are followed.
    """
    return _in_guarded_process(partial(thumbnail, link_roots=link_roots), images)


def thumbnail(image: tuple[str, bytes | None], link_roots: Sequence[str]) -> bytes:
    """A JPEG thumbnail of one image; empty if it cannot be read."""
    path, content = image
    if content is None:
        content = scaled_content(path, 2 * THUMBNAIL_PIXELS, link_roots=link_roots)
    try:
        return to_thumbnail(bytes(content or b""), THUMBNAIL_PIXELS)
    except UnreadableImage:
        return b""


def partial_thumbnails(paths: Iterable[str], link_roots: Sequence[str]) -> list[bytes]:
    """A small JPEG of each broken image, as far as it can be decoded; empty if nothing can."""
    return _in_guarded_process(partial(partial_thumbnail, link_roots=link_roots), paths)


def _in_guarded_process(function: Callable[[Item], bytes], items: Iterable[Item]) -> list[bytes]:
    with GuardedProcess(function, memory_bytes=THUMBNAIL_MEMORY_BYTES) as guarded:
        pictures = [guarded.run(item, cpu_seconds=THUMBNAIL_SECONDS) for item in items]
    return [b"" if isinstance(picture, ItemFailure) else picture for picture in pictures]


def to_caption(path: str, label: str | None) -> str:
    """The caption of an image: its label, else its file name."""
    return label or unquote(path.rpartition("/")[2])


def partial_thumbnail(path: str, link_roots: Sequence[str]) -> bytes:
    """A JPEG thumbnail of the decodable part of a broken image; changes Pillow's settings, so run it guarded."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with open_file(path, link_roots) as file, Image.open(file, formats=tuple(OPENERS)) as image:
            image.draft("RGB", (TILE_PIXELS, TILE_PIXELS))
            image.thumbnail((TILE_PIXELS, TILE_PIXELS))
            small = BytesIO()
            image.convert("RGB").save(small, "JPEG")
    except (*BROKEN, *BOMBS):
        return b""
    return small.getvalue()


def to_thumbnail(content: bytes, side_pixels: int) -> bytes:
    """The upright image as JPEG, downscaled to fit in a square."""
    header, image, _ = decoded(content, "RGB", min_side_pixels=2 * side_pixels)
    return small_jpeg(image, header, side_pixels)


def small_jpeg(image: Image.Image, header: Header, side_pixels: int) -> bytes:
    """A decoded image, upright, as JPEG, downscaled to fit in a square."""
    image.thumbnail((side_pixels, side_pixels))
    thumbnail = BytesIO()
    upright(image, header).save(thumbnail, "JPEG", quality=85)
    return thumbnail.getvalue()


def _to_sheet(images: Sequence[tuple[bytes, str]], side_pixels: int, columns: int) -> Image.Image:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = side_pixels + GAP_PIXELS
    height = side_pixels + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
    sheet = Image.new("RGB", (columns * width + GAP_PIXELS, rows * height + GAP_PIXELS), "white")
    fonts = fonts_for("".join(caption for _, caption in images))
    for index, (content, caption) in enumerate(images):
        left = GAP_PIXELS + index % columns * width
        top = GAP_PIXELS + index // columns * height
        _draw_tile(sheet, content, (left, top), side_pixels)
        font = _best(fonts, caption)
        text = "\n".join(_to_lines(caption, side_pixels, font))
        position = (left + side_pixels / 2, top + side_pixels + 3)
        ImageDraw.Draw(sheet).text(position, text, "#222222", font, anchor="ma", align="center", spacing=2)
    return sheet


def _draw_tile(sheet: Image.Image, content: bytes, corner: tuple[int, int], side_pixels: int) -> None:
    left, top = corner
    try:
        thumbnail = Image.open(BytesIO(to_thumbnail(content, side_pixels)))
    except UnreadableImage as error:
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((left, top, left + side_pixels - 1, top + side_pixels - 1), "#dddddd", "#aaaaaa")
        font = _to_pillow(dejavu_sans())
        text = "\n".join(_to_lines(error.reason.replace("_", " "), side_pixels, font))
        center = (left + side_pixels / 2, top + side_pixels / 2)
        draw.text(center, text, "#777777", font, anchor="mm", align="center")
        return
    offset = ((side_pixels - thumbnail.width) // 2, (side_pixels - thumbnail.height) // 2)
    sheet.paste(thumbnail, (left + offset[0], top + offset[1]))


def _to_lines(caption: str, width_pixels: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The caption, wrapped at spaces and slashes; lines that are too long end in an ellipsis."""
    lines: list[str] = []
    for paragraph in caption.splitlines():
        line = ""
        for word in re.split(r"(?<=[ /])", paragraph):
            if line and font.getlength((line + word).rstrip()) > width_pixels:
                lines.append(line.strip())
                line = ""
            line += word
        lines.append(line.strip())
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], " ".join(lines[CAPTION_LINES - 1 :])]
    return [_cut(line, width_pixels, font) for line in lines]


def _cut(line: str, width_pixels: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(line) <= width_pixels:
        return line
    while line and font.getlength(f"{line}…") > width_pixels:
        line = line[:-1]
    return f"{line}…"


def _best(fonts: Sequence[Font], caption: str) -> ImageFont.FreeTypeFont:
    # Pillow takes all characters from one font.
    if len(fonts) == 1:
        return _to_pillow(fonts[0])
    return _to_pillow(min(fonts, key=lambda font: len(lacking(font, frozenset(caption)))))


@cache
def _to_pillow(font: Font) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font.path, 11, font.face)  # Pillow's own font has Latin letters only


def _nothing() -> Image.Image:
    sheet = Image.new("RGB", (240, 60), "white")
    ImageDraw.Draw(sheet).text((120, 30), "nothing to show", "#777777", _to_pillow(dejavu_sans()), anchor="mm")
    return sheet
