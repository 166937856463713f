"""Tests of files on disk and objects in storage: any name survives in tables, only regular files are opened."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from image_assets.data.inspection import inspect_file
from image_assets.images.large_images import Limits
from resources.files.file_system import (
    FileChanged,
    OpenFolders,
    read_content,
    stat_file,
    to_image_file,
    to_name,
    to_path,
)
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.listing import NameFilter, list_names
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes

NAMES = [
    pytest.param(b"plain.jpg", id="plain"),
    pytest.param(b"with a space.jpg", id="space"),
    pytest.param(b"%20.jpg", id="like an escaped space"),
    pytest.param(b"100%.jpg", id="percent"),
    pytest.param(b"%25%0A.jpg", id="like an escape"),
    pytest.param(b"a#b?c=d&e.jpg", id="URL characters"),
    pytest.param(b"a:b;c,d'e\"f.jpg", id="punctuation"),
    pytest.param(b"[1]{2}*\\.jpg", id="pattern characters"),
    pytest.param("Blüte 😀.jpg".encode(), id="emoji"),
    pytest.param(b"two\nlines\r\t.jpg", id="line breaks"),
    pytest.param("\u2028\x85\x0b.jpg".encode(), id="other line breaks"),
    pytest.param(b"\xe9t\xe9 \xff.jpg", id="not UTF-8"),
    pytest.param(b"a" * 251 + b".jpg", id="255 bytes"),
    pytest.param("\u00e9.jpg".encode(), id="composed"),
    pytest.param("e\u0301.jpg".encode(), id="decomposed"),
    pytest.param(b"_hidden from Spark.jpg", id="underscore"),
    pytest.param(b".hidden.jpg", id="dot"),
    pytest.param("\ufeff\u202e\u0301.jpg".encode(), id="invisible characters"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_survives_and_opens_the_file(name: bytes, tmp_path: Path) -> None:
    file = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - pathlib takes no bytes
    with open(file, "wb") as opened:  # noqa: PTH123 - pathlib takes no bytes
        opened.write(b"content")
    everything = NameFilter(lambda name: True, lambda name: "")
    (path,) = list_names(tmp_path, everything, stat_file).names
    assert path == to_path(file)
    assert to_name(path) == file
    assert read_content(path, length=7) == b"content"
    path.encode()  # a table's text is UTF-8
    assert not set(path) & set("\n\r")


def test_every_single_byte_of_a_name_survives() -> None:
    names = [b"/a/" + bytes([byte]) + b".jpg" for byte in range(1, 256)]
    assert [to_name(to_path(name)) for name in names] == names
    assert len({to_path(name) for name in names}) == len(names)


def test_readable_names_stay_readable() -> None:
    assert to_path("/photos/Blüte 1#2?.jpg".encode()) == "file:/photos/Blüte 1#2?.jpg"
    assert to_path(b"/photos/100%.jpg") == "file:/photos/100%25.jpg"


def test_images_are_listed_by_suffix_in_any_depth_and_links_are_not_followed(tmp_path: Path) -> None:
    landing, elsewhere = tmp_path / "landing", tmp_path / "elsewhere"
    for file in (landing / "a.JPG", landing / "x" / "y" / "b.tiff", landing / "notes.txt", elsewhere / "c.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1234")
    (landing / "folder").symlink_to(elsewhere)
    (landing / "link.png").symlink_to(elsewhere / "c.png")
    (landing / "nowhere.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(landing / "pipe.png")
    (landing / "loop").symlink_to(landing / "loop")
    found = {Path(path).name: regular for path, regular in ImageFolder(root=str(landing)).list_names().names.items()}
    assert found == {
        "a.JPG": True,
        "b.tiff": True,
        "folder": False,
        "link.png": False,
        "nowhere.png": False,
        "pipe.png": False,
    }
    file = stat_file(to_path(os.fsencode(landing / "a.JPG")))
    assert file is not None
    assert (file.length, file.regular) == (4, True)


def test_the_state_of_a_deleted_file_is_none(tmp_path: Path) -> None:
    file = put(tmp_path, "a/b.png", png(1))
    path = to_path(os.fsencode(file))
    file.unlink()
    assert stat_file(path) is None
    file.parent.rmdir()
    file.parent.touch()
    assert stat_file(path) is None


def test_times_have_microseconds(tmp_path: Path) -> None:
    for number, nanoseconds in enumerate([1, 999, 1_000, 1_767_323_045_678_901_999, 4_000_000_000_999_999_999]):
        file = tmp_path / f"{number}.png"
        file.touch()
        os.utime(file, ns=(nanoseconds, nanoseconds))
        listed = stat_file(to_path(os.fsencode(file)))
        assert listed is not None
        assert round(listed.modification_time.timestamp() * 1e6) == nanoseconds // 1000


def test_a_different_length_means_that_the_file_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"123")
    path = to_path(os.fsencode(file))
    with pytest.raises(FileChanged, match="4 bytes when listed and 3 when read"):
        read_content(path, length=4)
    with pytest.raises(FileChanged):
        read_content(path, length=2)


@contextmanager
def rewritten(file: Path) -> Iterator[None]:
    """Write the first byte of the file again and again, which does not change its length."""
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        with file.open("r+b", buffering=0) as opened:
            while not stop.is_set():
                os.pwrite(opened.fileno(), b"2", 0)
                started.set()

    writer = threading.Thread(target=write)
    writer.start()
    started.wait()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_a_file_that_is_rewritten_with_the_same_length_while_it_is_read_has_changed(tmp_path: Path) -> None:
    file, length = tmp_path / "a.png", 256 * 2**20
    with file.open("wb") as opened:
        opened.truncate(length)
    path = to_path(os.fsencode(file))
    assert len(read_content(path, length=length)) == length
    with rewritten(file):
        with pytest.raises(FileChanged, match=f"{length} bytes when listed"):
            read_content(path, length=length)
        assert inspect_file(path, length, Limits(content_bytes=1)).state == "pending", "hashed in blocks"


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_subfolder_that_cannot_be_read_hides_only_its_own_files(tmp_path: Path, mode: int) -> None:
    put(tmp_path, "roses/a.png", png(1))
    put(tmp_path, "backup/deep/b.png", png(2))
    folder = ImageFolder(root=str(tmp_path))
    (tmp_path / "backup").chmod(mode)
    try:
        with obeying_modes():
            listing = folder.list_names()
            files = list_files(folder)
    finally:
        (tmp_path / "backup").chmod(0o755)
    assert [file.path for file in files] == [f"{folder.path}/roses/a.png"] == list(listing.names)
    assert listing.unreadable == {f"{folder.path}/backup": "Permission denied"}
    assert len(folder.list_names().names) == 2


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_landing_folder_that_cannot_be_read_is_reported(tmp_path: Path, mode: int) -> None:
    put(tmp_path, "photos/a.png", png(1))
    (tmp_path / "photos").chmod(mode)
    try:
        with obeying_modes(), pytest.raises(FolderUnavailable, match=r"photos cannot be listed.*Permission denied"):
            ImageFolder(root=str(tmp_path / "photos")).list_names()
    finally:
        (tmp_path / "photos").chmod(0o755)


def test_the_state_of_a_file_that_cannot_be_read_has_a_problem(tmp_path: Path) -> None:
    file = put(tmp_path, "roses/a.png", png(1))
    path = to_path(os.fsencode(file))
    file.parent.chmod(0o000)
    try:
        with obeying_modes():
            found = stat_file(path)
    finally:
        file.parent.chmod(0o755)
    assert found is not None
    assert (found.regular, found.problem) == (False, "Permission denied")
    assert stat_file(f"{path}{'a' * 5000}").problem == "File name too long"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="ext4 keeps no time that is far enough from now; tmpfs does")
def test_a_time_that_tables_cannot_hold_becomes_the_nearest_one() -> None:
    years = {2**55: 9999, 253_402_300_800: 9999, 253_402_214_400: 9999, -(2**40): 1, -(2**55): 1, -62_135_596_801: 1}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as landing:
        for seconds in years:
            os.utime(put(Path(landing), f"{seconds}.png", png(1)), (seconds, seconds))
        put(Path(landing), "now.png", png(2))
        files = {Path(file.path).stem: file for file in list_files(ImageFolder(root=landing))}
    assert datetime.now(UTC).year - files.pop("now").modification_time.year <= 1
    assert {int(name): file.modification_time.year for name, file in files.items()} == years
    assert all(file.regular and not file.problem for file in files.values())


@pytest.mark.parametrize(
    "info",
    [{"size": None}, {}, {"size": 1, "mtime": "yesterday"}, {"size": 1, "mtime": float("nan")}, {"size": "many"}],
)
def test_an_object_without_a_valid_size_and_time_has_a_problem(info: dict) -> None:
    file = to_image_file("s3://photos/a.png", info)
    assert not file.regular
    assert file.problem.startswith("size or time is invalid")


def test_an_object_may_have_any_time() -> None:
    years = [
        to_image_file("sftp://a/b.png", {"size": 1, "mtime": time}).modification_time.year for time in (1e30, -1e30)
    ]
    assert years == [9999, 1]


def test_links_and_pipes_are_rejected_without_waiting_for_a_writer(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("link.png", "pipe.png"):
        with pytest.raises(OSError, match=name):
            read_content(to_path(os.fsencode(tmp_path / name)), length=1)


def test_a_folder_that_was_replaced_by_a_link_is_not_followed(tmp_path: Path) -> None:
    file = put(tmp_path, "landing/cat/a.png", png(1))
    path = to_path(os.fsencode(file))
    assert read_content(path, length=len(png(1))) == png(1)
    file.parent.rename(tmp_path / "elsewhere")
    file.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        read_content(path, length=len(png(1)))


def test_open_folders_read_the_same_files_and_follow_no_links(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "a/b/3.png", "a/4.png", "c/5.png", "6.png", "a/b/7.png"]
    files = [put(tmp_path, name, png(number)) for number, name in enumerate(names)]
    put(tmp_path, "secret/8.png", png(8))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used as paths
    with OpenFolders() as opened:
        for number, file in enumerate(files):
            length = len(png(number))
            assert read_content(to_path(os.fsencode(file)), length=length, open_folders=opened) == png(number)
        (tmp_path / "a" / "d").symlink_to(tmp_path / "secret")
        for name in ("a/d/8.png", "a/none/9.png", "a/1.png/x.png"):
            with pytest.raises(OSError, match="Not a directory|Too many levels|No such file"):
                read_content(to_path(os.fsencode(tmp_path / name)), length=len(png(8)), open_folders=opened)
        assert read_content(to_path(os.fsencode(files[1])), length=len(png(1)), open_folders=opened) == png(1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


URL = "memory://photos/100% mine"


@pytest.fixture
def folder() -> Iterator[ImageFolder]:
    """A bucket in memory: photos, two with names that URLs read in another way, and a text file."""
    system = fsspec.filesystem("memory")
    contents = {"a.png": png(1), "roses/b #1%20?.PNG": png(2), "a.png::http://b.png": png(3), "notes.txt": b"text"}
    for name, content in contents.items():
        system.pipe_file(f"/photos/100% mine/{name}", content)
    yield ImageFolder(root=URL, exclude=["thumbnails"])
    system.rm("/photos", recursive=True)


def test_objects_are_listed_with_size_and_time_below_the_folders_path(folder: ImageFolder) -> None:
    files = {file.path.removeprefix(f"{folder.path}/"): file for file in list_files(folder)}
    assert {name: file.length for name, file in files.items()} == {
        "a.png": len(png(1)),
        "roses/b #1%2520?.PNG": len(png(2)),
        "a.png::http://b.png": len(png(3)),
    }
    assert all(file.regular and file.modification_time.tzinfo for file in files.values())


def test_objects_are_read_by_their_paths(folder: ImageFolder) -> None:
    contents = {read_content(file.path, length=file.length) for file in list_files(folder)}
    assert contents == {png(1), png(2), png(3)}
    assert folder.list_paths([file.path for file in list_files(folder)]).names == folder.list_names().names
    (first, *_) = list_files(folder)
    with pytest.raises(FileChanged):
        read_content(first.path, length=first.length + 1)


def test_a_replaced_object_has_another_time(folder: ImageFolder) -> None:
    before = {file.path: file for file in list_files(folder)}
    fsspec.filesystem("memory").pipe_file("/photos/100% mine/a.png", png(3))
    assert [file.path for file in list_files(folder) if before[file.path] != file] == [f"{folder.path}/a.png"]


def test_an_excluded_folder_is_left_out(folder: ImageFolder) -> None:
    fsspec.filesystem("memory").pipe_file("/photos/100% mine/roses/thumbnails/a.png", png(4))
    assert len(list_files(folder)) == 3
