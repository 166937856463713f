"""Objects on any file system that fsspec knows are listed and read like files."""

from collections.abc import Iterator

import fsspec
import pytest

from resources.files.file_system import FileChanged, read_content
from resources.files.image_folder import ImageFolder
from tests.support.images import png

URL = "memory://photos/100% mine"


@pytest.fixture
def folder() -> Iterator[ImageFolder]:
    """A bucket in memory: two photographs, one under a name that no URL would take, and a text."""
    system = fsspec.filesystem("memory")
    for name, content in {"a.png": png(1), "roses/b #1%20?.PNG": png(2), "notes.txt": b"text"}.items():
        system.pipe_file(f"/photos/100% mine/{name}", content)
    yield ImageFolder(root=URL, exclude=["thumbnails"])
    system.rm("/photos", recursive=True)


def test_objects_are_listed_with_size_and_time_below_the_folders_path(folder: ImageFolder) -> None:
    files = {file.path.removeprefix(f"{folder.path}/"): file for file in folder.list_files()}
    assert {name: file.length for name, file in files.items()} == {
        "a.png": len(png(1)),
        "roses/b #1%2520?.PNG": len(png(2)),
    }
    assert all(file.regular and file.modification_time.tzinfo for file in files.values())


def test_objects_are_read_by_their_paths(folder: ImageFolder) -> None:
    contents = {read_content(file.path, length=file.length) for file in folder.list_files()}
    assert contents == {png(1), png(2)}
    (first, *_) = folder.list_files()
    with pytest.raises(FileChanged):
        read_content(first.path, length=first.length + 1)


def test_a_replaced_object_has_another_time(folder: ImageFolder) -> None:
    before = {file.path: file for file in folder.list_files()}
    fsspec.filesystem("memory").pipe_file("/photos/100% mine/a.png", png(3))
    assert [file.path for file in folder.list_files() if before[file.path] != file] == [f"{folder.path}/a.png"]


def test_an_excluded_folder_is_left_out(folder: ImageFolder) -> None:
    fsspec.filesystem("memory").pipe_file("/photos/100% mine/roses/thumbnails/a.png", png(4))
    assert len(folder.list_files()) == 2
