"""Images above the limits are scaled while they are decoded, wherever their files lie."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.images.formats import UnreadableImage
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import scaled_content, scaled_contents
from image_assets.images.pixels import DEFAULT, Reading, to_file_pixels, to_pixels
from resources.files.file_system import to_path
from tests.support.image_files import saved, tiff_pages
from tests.support.images import jpeg, picture, png, put

MEMORY_BYTES = 300 * 1024**2  # 20,000 x 15,000 pixels are 900 MB


@pytest.fixture(scope="module")
def apart() -> Iterator[Executor]:
    """A process in which no thread of libvips was started, as one that is forked from cannot have any."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


def write_large(file: Path) -> None:
    """The picture at 20,000 x 15,000 pixels, written in as little memory as it is to be read in."""
    import pyvips

    pyvips.Image.new_from_buffer(png(1, (20, 15)), "").zoom(1000, 1000).write_to_file(str(file))


def copy(name: str, factor: int) -> bytes:
    """The picture, a multiple of 20 x 15 pixels, in a format."""
    content = BytesIO()
    picture(1, (20, 15)).resize((20 * factor, 15 * factor), Image.Resampling.NEAREST).save(content, name)
    return content.getvalue()


def pixels_of(file: Path, color: Literal["rgb", "gray"], max_bytes: int) -> np.ndarray:
    """What a network sees of the file."""
    with file.open("rb") as opened:
        return to_file_pixels(opened, 224, color, max_bytes=max_bytes)


def pixels_in_little_memory(file: Path, color: Literal["rgb", "gray"]) -> np.ndarray | ItemFailure:
    """The same, where there is no memory for the whole image."""
    with GuardedProcess(lambda file: pixels_of(file, color, 10**9), memory_bytes=MEMORY_BYTES) as guarded:
        return guarded.run(file, cpu_seconds=120)


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_a_large_file_gives_the_pixels_of_a_smaller_copy_in_little_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writing:
        writing.submit(write_large, file).result()
    for color in ("rgb", "gray"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            found = apart.submit(pixels_in_little_memory, file, color).result()
        assert isinstance(found, np.ndarray), found
        assert np.abs(found.astype(float) - to_pixels(copy("PNG", 100), 224, color)).mean() < 1
    file.unlink()


def test_only_what_is_too_large_is_scaled(tmp_path: Path, apart: Executor) -> None:
    content = copy("JPEG", 100)
    file = put(tmp_path, "a.jpg", content)
    whole, scaled = (apart.submit(pixels_of, file, "rgb", len(content) - less).result() for less in (0, 1))
    assert np.array_equal(whole, to_pixels(content, 224))
    assert 0 < np.abs(whole.astype(float) - scaled).mean() < 1


def test_a_large_file_that_was_cut_off_is_unreadable(tmp_path: Path, apart: Executor) -> None:
    file = put(tmp_path, "a.jpg", jpeg(1)[:-20])
    with pytest.raises(UnreadableImage, match="truncated"):
        apart.submit(pixels_of, file, "rgb", 10).result()


def small_object(content: bytes) -> bytes | None:
    """Small content of an object in a store that has no descriptors."""
    with fsspec.open("memory://path_only/a", "wb") as written:
        written.write(content)
    return scaled_content("memory://path_only/a", 20)


@pytest.mark.parametrize("encoded", [png, jpeg])
def test_an_object_is_scaled_as_a_file_is(tmp_path: Path, encoded: Callable[[int], bytes], apart: Executor) -> None:
    path = to_path(os.fsencode(put(tmp_path, "a", encoded(1))))
    small = apart.submit(scaled_content, path, 20).result()
    assert apart.submit(small_object, encoded(1)).result() == small is not None


def list_small_contents(
    paths: list[str | None], lengths: list[int | None], reading: Reading = DEFAULT
) -> list[bytes | None]:
    """The small contents of one batch."""
    (made,) = scaled_contents(iter([(pd.Series(paths), pd.Series(lengths, dtype=float))]), reading)
    return made.tolist()


def test_contents_are_made_of_files_that_are_as_they_were(tmp_path: Path) -> None:
    content = png(1)
    path = to_path(os.fsencode(put(tmp_path, "a b%.png", content)))
    paths = [path, None, path, f"{path}.gone", to_path(os.fsencode(put(tmp_path, "text", b"no image")))]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        made = apart.submit(list_small_contents, paths, [len(content), None, len(content) + 1, 5, 8]).result()
    assert [small is not None for small in made] == [True, False, False, False, False]
    assert np.array_equal(to_pixels(made[0] or b"", 32), to_pixels(content, 32))


def test_large_files_are_read_by_the_settings(tmp_path: Path) -> None:
    blank, gray = np.full((15, 20), 255, np.uint8), np.arange(300).astype(np.uint8).reshape(15, 20)
    pages, many = tiff_pages(blank, gray), saved(Image.new("1", (1000, 1000)), "PNG")
    paths = [to_path(os.fsencode(put(tmp_path, *file))) for file in (("pages.tif", pages), ("many.png", many))]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        first, best = (
            apart.submit(list_small_contents, [*paths], [len(pages), len(many)], reading).result()
            for reading in (Reading(page="first", max_pixels=1000), DEFAULT)
        )
    assert [to_pixels(made[0] or b"", 20).min() for made in (first, best)] == [255, 0]
    assert [made[1] is not None for made in (first, best)] == [False, True]
