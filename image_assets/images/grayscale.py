"""Gray pixels of images (runs in each executor)."""

from collections.abc import Iterable, Iterator

from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits, scaled_content
from image_assets.images.pixels import to_grayscale
from resources.delta.arrow_rows import Row

PATH_ONLY_PIXELS = 2048  # an image above the content limit is scaled down to fit in a square of this side


def to_gray_rows(images: Iterable[Row]) -> Iterator[Row]:
    """The images with gray PNG content, the other columns carried along."""
    limits = Limits()
    with GuardedProcess(scaled_grayscale, memory_bytes=limits.memory_bytes) as guarded:
        for image in images:
            if image["content"] is not None:
                yield {**image, "content": to_grayscale(image["content"])}
            else:
                gray = guarded.run(image["path"], seconds=limits.seconds_for(image["length"]))
                yield {**image, "content": None if isinstance(gray, ItemFailure) else gray}


def scaled_grayscale(path: str) -> bytes | None:
    """Gray pixels of an image above the content limit; None where its file cannot be read any more."""
    content = scaled_content(path, PATH_ONLY_PIXELS)
    return None if content is None else to_grayscale(content)
