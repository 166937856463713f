"""Tests of the photographs for benchmarks: the requested number, no two alike, reproducible."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import (
    LABELS,
    SIZE,
    SMALL,
    SMALL_SIZE,
    Photographs,
    files_in,
    number_of,
    numbered,
    photograph,
    remove_beyond,
    source_digest,
    source_files,
    write,
)
from tests.support.images import jpeg, put


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)))


def test_a_number_changes_the_bytes_and_not_the_pixels() -> None:
    first, second = numbered(jpeg(1), 1), numbered(jpeg(1), 2)
    assert len({first, second, jpeg(1)}) == 3
    assert np.array_equal(pixels(first), pixels(jpeg(1)))
    assert np.array_equal(pixels(second), pixels(jpeg(1)))


@pytest.mark.parametrize(
    ("photographs", "size", "kilobytes"), [(Photographs(), SIZE, (50, 70)), (SMALL, SMALL_SIZE, (5, 8))]
)
def test_generated_ones_are_as_large_as_photographs(
    photographs: Photographs, size: tuple[int, int], kilobytes: tuple[int, int]
) -> None:
    contents = [photograph(photographs, number)[1] for number in range(3)]
    assert {Image.open(BytesIO(content)).size for content in contents} == {size}
    assert kilobytes[0] <= sum(map(len, contents)) / 3000 <= kilobytes[1]


def test_files_are_written_by_number_with_labels_and_old_times(tmp_path: Path) -> None:
    write(SMALL, tmp_path, range(7))
    files = sorted(files_in(tmp_path), key=number_of)
    assert [number_of(file) for file in files] == list(range(7))
    assert {file.relative_to(tmp_path).parts[0] for file in files} == set(LABELS)
    assert len({file.read_bytes() for file in files}) == 7
    assert all(file.stat().st_mtime < 1_700_000_000 for file in files)
    remove_beyond(tmp_path, 5)
    assert sorted(map(number_of, files_in(tmp_path))) == list(range(5))


def test_a_folder_of_photographs_gives_its_own_pictures_and_labels(tmp_path: Path) -> None:
    put(tmp_path, "ball/a.jpg", jpeg(1))
    put(tmp_path, "cube/b.jpeg", jpeg(2))
    made = [photograph(Photographs(source=str(tmp_path)), number) for number in range(4)]
    labels = [name.split("/")[0] for name, _ in made]
    assert sorted(labels[:2]) == ["ball", "cube"]
    assert labels[2:] == labels[:2]
    assert np.array_equal(pixels(made[2 + labels.index("ball")][1]), pixels(jpeg(1)))


def test_copies_are_made_anew_when_the_photographs_change(tmp_path: Path) -> None:
    source = Photographs(source=str(tmp_path))
    put(tmp_path, "ball/a.jpg", jpeg(1))
    folders = [folder_of_the_next_run(source)]
    assert folder_of_the_next_run(source) == folders[0]
    put(tmp_path, "ball/b.jpg", jpeg(2))
    folders.append(folder_of_the_next_run(source))
    os.utime(tmp_path / "ball" / "b.jpg", (1, 1))
    folders.append(folder_of_the_next_run(source))
    assert len(set(folders)) == 3


def folder_of_the_next_run(photographs: Photographs) -> Path:
    """Where the next `make bench` stores the copies; a process lists the photographs once."""
    source_files.cache_clear()
    source_digest.cache_clear()
    return photographs.folder


def test_a_folder_without_photographs_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which contains no JPEG files"):
        photograph(Photographs(source=str(tmp_path)), 0)
