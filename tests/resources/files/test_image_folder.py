"""Tests of the landing folder: when a file counts as complete, and which files are listed."""

import errno
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from resources.files import image_folder
from resources.files.file_system import read_content
from resources.files.image_folder import FolderUnavailable, ImageFolder
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.s3_server import BUCKET, s3_server

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Two files that are an hour old; the settle period is 30 s, but tests do not really sleep."""
    for name in ("a.png", "b.png"):
        aged(put(tmp_path, name, png(1)), HOUR)
    return ImageFolder(root=str(tmp_path), settle_seconds=30)


def aged(file: Path, seconds: float) -> Path:
    os.utime(file, (time.time() - seconds,) * 2)
    return file


def names_settled(folder: ImageFolder, meanwhile: Callable[[], object]) -> tuple[list[str], list[float]]:
    """The names of the settled files and the sleeps, if `meanwhile` happens during the sleep."""
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        meanwhile()

    return sorted(Path(file.path).name for file in folder.settled(list_files(folder), sleep)), slept


def test_old_files_are_complete_at_once(folder: ImageFolder) -> None:
    assert names_settled(folder, lambda: None) == (["a.png", "b.png"], [])


def test_new_files_that_do_not_change_are_complete_after_one_settle_period(folder: ImageFolder) -> None:
    put(Path(folder.root), "new.png", png(2))
    put(Path(folder.root), "newer.png", png(3))
    assert names_settled(folder, lambda: None) == (["a.png", "b.png", "new.png", "newer.png"], [30])


def test_a_growing_file_is_not_complete_and_delays_no_other(folder: ImageFolder) -> None:
    new = put(Path(folder.root), "new.png", png(2))
    assert names_settled(folder, lambda: new.write_bytes(png(2) * 2)) == (["a.png", "b.png"], [30])


def test_a_file_that_is_deleted_meanwhile_is_not_complete(folder: ImageFolder) -> None:
    new = put(Path(folder.root), "new.png", png(2))
    assert names_settled(folder, new.unlink) == (["a.png", "b.png"], [30])


@pytest.mark.parametrize(("number", "requests"), [(100, 100), (101, 0)])
def test_many_objects_are_listed_instead_of_asked_for(
    monkeypatch: pytest.MonkeyPatch, number: int, requests: int
) -> None:
    folder, asked = ImageFolder(root="memory://asked/photos"), list[str]()
    system, info = fsspec.filesystem("memory"), MemoryFileSystem.info
    system.pipe({f"/asked/photos/{name}.png": b"1" for name in range(number)})
    files = list_files(folder)

    def counted(self: MemoryFileSystem, path: str, **options: object) -> dict:
        asked.append(path)
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", counted)
    try:
        state = folder.stat_files([file.path for file in files])
        assert ([state(file.path) for file in files], len(asked)) == (files, requests)
    finally:
        system.store.clear()


class Interrupted(BytesIO):
    """A file whose disk fails after the first bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() or size in (None, -1):
            raise OSError(errno.EIO, "Input/output error")
        return super().read(3)


@pytest.mark.parametrize("root", ["memory://interrupted", "folder"])
def test_a_file_that_cannot_be_copied_as_a_whole_does_not_appear(tmp_path: Path, root: str) -> None:
    root = root if "://" in root else str(tmp_path / root)
    with pytest.raises(OSError, match="Input/output error"):
        image_folder.put(root, "roses/a.png", Interrupted(png(1)))
    assert list_files(ImageFolder(root=root, include=["*"], litter=[])) == []
    image_folder.put(root, "roses/a::b.png", BytesIO(png(1)))
    (file,) = list_files(ImageFolder(root=root))
    assert read_content(file.path, length=file.length) == png(1)


def test_a_time_in_the_future_causes_no_wait(folder: ImageFolder) -> None:
    aged(put(Path(folder.root), "tomorrow.png", png(2)), -24 * HOUR)
    assert names_settled(folder, lambda: None) == (["a.png", "b.png", "tomorrow.png"], [])


def test_a_missing_folder_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"photos does not exist.*IMAGE_ASSETS_LANDING"):
        list_files(ImageFolder(root=str(tmp_path / "photos")))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"photo.jpg is not a folder.*IMAGE_ASSETS_LANDING"):
        list_files(ImageFolder(root=str(tmp_path / "photo.jpg")))


def test_a_bucket_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ImageFolder(root=f"s3://{BUCKET}/photos")
    with s3_server() as variables:
        for name, value in {**variables, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        image_folder.put(folder.root, "a.png", BytesIO(png(1)))
        (file,) = list_files(folder)
    for list_again in (folder.list_names, lambda: folder.list_paths([file.path])):
        with pytest.raises(FolderUnavailable, match=r"cannot be listed: Could not connect .* mounted or reachable"):
            list_again()


def test_a_folder_without_images_is_reported_with_what_was_expected(tmp_path: Path, folder: ImageFolder) -> None:
    folder.require_files()
    put(tmp_path / "other", "notes.txt", b"text")
    with pytest.raises(
        FileNotFoundError, match=r"contains no image files\. Skipped: .*\.txt 1\)\. Expected files ending in \.jpg"
    ):
        ImageFolder(root=str(tmp_path / "other")).require_files()


def test_the_paths_of_files_begin_with_the_folders_path(tmp_path: Path) -> None:
    put(tmp_path, "100% mine/a.png", png(1))
    folder = ImageFolder(root=str(tmp_path / "100% mine"))
    assert [file.path for file in list_files(folder)] == [f"{folder.path}/a.png"]


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], ["a.JPG", "roses/b.png", "roses/raw/c.tif", "x/_d.jpg"]),
        (["*.jpg"], [], ["a.JPG", "x/_d.jpg"]),
        (["*.txt"], [], ["roses/notes.txt"]),
        (["roses/*"], [], ["roses/b.png", "roses/notes.txt", "roses/raw/c.tif"]),
        ([], ["raw"], ["a.JPG", "roses/b.png", "x/_d.jpg"]),
        ([], ["roses/r*", "x/.*"], ["a.JPG", "roses/b.png", "x/_d.jpg"]),
        (["*.png", "*.tif"], ["ROSES"], []),
    ],
)
def test_patterns_select_files(tmp_path: Path, include: list[str], exclude: list[str], taken: list[str]) -> None:
    for name in ("a.JPG", "roses/b.png", "roses/raw/c.tif", "roses/notes.txt", "x/_d.jpg", "x/.e.jpg"):
        put(tmp_path, name, b"1")
    folder = ImageFolder(root=str(tmp_path), include=include, exclude=exclude)
    assert sorted(path.removeprefix(f"{folder.path}/") for path in folder.list_names().names) == sorted(taken)
