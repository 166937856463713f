"""What the settings of the landing folder say of each file."""

from image_assets.data.judging import Limits
from resources.image_folder import ImageFolder


def to_limits(image_folder: ImageFolder) -> Limits:
    """What the landing folder's settings say of each file."""
    return Limits(
        content_bytes=image_folder.content_limit_bytes,
        size_bytes=image_folder.size_limit_bytes,
        seconds=image_folder.decode_seconds,
        memory_bytes=image_folder.decode_memory_bytes,
    )
