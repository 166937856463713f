"""Pixels of images above the content limit, whose rows hold no content (runs in each executor)."""

from image_assets.pixels import UnreadableImage, to_smaller
from resources.file_system import opened


def small_content(path: str, side_pixels: int) -> bytes | None:
    """The file's image as PNG, scaled while it is decoded to fit in a square; None where it cannot be read any more."""
    try:
        with opened(path) as file:
            return to_smaller(file, side_pixels)
    except (OSError, UnreadableImage):  # gone or replaced since it was judged
        return None
