"""What a listing takes in, what it skips and counts, and which links it follows; on disk and in object storage."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import fsspec
import pytest

from image_assets.data.inspection import CURRENT, QUARANTINED, inspect_file
from image_assets.images.large_images import Limits
from resources.files.file_system import SUFFIXES, read_content
from resources.files.image_folder import ImageFolder, to_matcher
from resources.files.listing import NO_SUFFIX, Skipped, suffix_of
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.s3_server import BUCKET, s3_server

PHOTOGRAPHS = ["a.JPG", "daisy/b.HEIC", "daisy/deep/c.jfif", "roses/d.dcm"]
LITTER = {  # by the name under which it is counted
    ".ipynb_checkpoints": [".ipynb_checkpoints/a-checkpoint.jpg", "daisy/.ipynb_checkpoints/b-checkpoint.png"],
    "@eaDir": ["daisy/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg"],
    "#recycle": ["#recycle/gone.jpg"],
    "$RECYCLE.BIN": ["$RECYCLE.BIN/S-1-5/$R1.jpg"],
    ".Trash-1000": [".Trash-1000/files/a.jpg"],
    "__MACOSX": ["__MACOSX/daisy/._b.jpg"],
    ".git": [".git/a.png"],
    ".dvc": [".dvc/cache/00/a.png"],
    "lost+found": ["lost+found/a.jpg"],
    ".thumbnails": [".thumbnails/large/a.png"],
    "Thumbs": ["roses/Thumbs/d.jpg"],
}
OTHERS = ["notes.txt", "roses/clip.MOV", "roses/clip2.mov", "roses/IMG_1.CR2", "LICENSE"]
HIDDEN = ["daisy/._b.jpg", "roses/._d.jpg", "roses/.hidden.png"]


def on_disk(folder: Path) -> ImageFolder:
    for name in [*PHOTOGRAPHS, *OTHERS, *HIDDEN, *(name for names in LITTER.values() for name in names)]:
        put(folder, name, b"1")
    return ImageFolder(root=str(folder))


def in_storage(_: Path) -> ImageFolder:
    system = fsspec.filesystem("memory")
    for name in [*PHOTOGRAPHS, *OTHERS, *HIDDEN, *(name for names in LITTER.values() for name in names)]:
        system.pipe_file(f"/littered/photos/{name}", b"1")
    return ImageFolder(root="memory://littered/photos")


@pytest.fixture(params=[on_disk, in_storage])
def littered(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageFolder]:
    """A folder with photographs and everything that people and programs leave beside them."""
    create: Callable[[Path], ImageFolder] = request.param
    yield create(tmp_path)
    fsspec.filesystem("memory").store.clear()


def names_of(folder: ImageFolder) -> list[str]:
    return sorted(path.removeprefix(f"{folder.path}/") for path in folder.list_names().names)


def test_photographs_are_taken_in_and_everything_skipped_is_counted(littered: ImageFolder) -> None:
    listing = littered.list_names()
    assert sorted(path.removeprefix(f"{littered.path}/") for path in listing.names) == PHOTOGRAPHS
    assert listing.skipped == Skipped(
        suffixes=Counter({".mov": 2, ".txt": 1, ".cr2": 1, NO_SUFFIX: 1}),
        files=Counter({"._*": 2, ".*": 1}),
        folders=Counter({name: len(names) for name, names in LITTER.items()}),
    )
    assert str(listing.skipped).startswith("5 other files (.mov 2, ")
    assert "excluded folders (.ipynb_checkpoints 2, @eaDir 2, " in str(listing.skipped)
    assert listing.skipped.rows()[:2] == [("._*", "excluded files", 2), (".ipynb_checkpoints", "excluded folders", 2)]


def test_events_follow_the_same_rules(littered: ImageFolder) -> None:
    everything = [*PHOTOGRAPHS, *OTHERS, *HIDDEN, *(name for names in LITTER.values() for name in names)]
    listing = littered.list_paths(f"{littered.path}/{name}" for name in everything)
    assert (listing.names.keys(), listing.skipped) == (
        littered.list_names().names.keys(),
        littered.list_names().skipped,
    )


def test_litter_is_configurable(littered: ImageFolder) -> None:
    some = littered.model_copy(update={"litter": ["@eaDir"], "exclude": ["roses"]})
    assert {"daisy/._b.jpg", ".git/a.png"} <= set(names_of(some))
    assert some.list_names().skipped.folders == Counter({"@eaDir": 2, "roses": 1})
    assert len(names_of(littered.model_copy(update={"litter": []}))) == len(PHOTOGRAPHS) + 3 + 13


@pytest.mark.parametrize("prefix", ["", "/photos"])
def test_keys_with_several_slashes_are_ingested(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    names = ["/a.png", "//b.png", "/roses/c.png", "roses//d.png", "e.png"]
    folder = ImageFolder(root=f"s3://{BUCKET}{prefix}")
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for number, name in enumerate(names):
            key = f"{prefix}/{name}".removeprefix("/")
            boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=png(number))
        files = list_files(folder)
        contents = {file.path: inspect_file(file.path, file.length, Limits()).content for file in files}
        assert folder.list_paths(contents).names == folder.list_names().names
    assert contents == {f"{folder.path}/{name}": png(number) for number, name in enumerate(names)}


def test_a_folder_with_nothing_but_videos_says_so(tmp_path: Path) -> None:
    put(tmp_path, "holiday/a.mp4", b"1")
    with pytest.raises(FileNotFoundError, match=r"no image files\. Skipped: 1 other files \(\.mp4 1\)\. Expected"):
        ImageFolder(root=str(tmp_path)).require_files()


@pytest.mark.parametrize(
    "suffix", ["jfif", "jpe", "pjpeg", "heic", "heif", "avif", "jp2", "jxl", "dcm", "mpo", "dib", "tif", "JPEG"]
)
def test_the_suffixes_that_people_have_are_taken_in(suffix: str) -> None:
    assert f".{suffix}".lower() in SUFFIXES


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a/b.MP4", ".mp4"),
        ("a.b/c", NO_SUFFIX),
        (".DS_Store", NO_SUFFIX),
        ("a.", NO_SUFFIX),
        ("a.tar.gz", ".gz"),
        ("log.a sentence after a dot", NO_SUFFIX),
    ],
)
def test_a_suffix_is_what_follows_the_last_dot(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_a_matcher_names_the_pattern() -> None:
    match = to_matcher(["*.tmp", "raw/*", "._*", "[ab].jpg"])
    found = {name: match(name) for name in ("x/A.TMP", "raw/1.jpg", "x/raw/1.jpg", "x/._1.jpg", "b.jpg", "c.jpg")}
    assert list(found.values()) == ["*.tmp", "raw/*", "", "._*", "[ab].jpg", ""]


def test_names_of_a_million_files_are_judged_in_seconds() -> None:
    names = ImageFolder(root="/photos").name_filter()
    skipped = Skipped()
    started = time.process_time()
    assert all(names.keeps(f"label {number % 100}/IMG_{number:06}.jpg", skipped) for number in range(100_000))
    assert time.process_time() - started < 1.5


@pytest.fixture
def linked(tmp_path: Path) -> ImageFolder:
    """Links to a file and a folder of a named root, to a root that is not named, and loops."""
    landing, pool, private = (tmp_path / name for name in ("landing", "pool", "private"))
    put(landing, "daisy/a.png", png(1))
    put(pool, "roses/b.png", png(2))
    put(pool, "blob", png(3))
    put(private, "c.png", png(4))
    (landing / "daisy" / "d.png").symlink_to(pool / "blob")
    (landing / "roses").symlink_to(pool / "roses")
    (landing / "again").symlink_to(pool / "roses")
    (landing / "private").symlink_to(private)
    (landing / "e.png").symlink_to(private / "c.png")
    (landing / "up").symlink_to(tmp_path)  # above every root
    (pool / "roses" / "loop").symlink_to(pool / "roses")
    (pool / "roses" / "landing").symlink_to(landing)
    (landing / "self.png").symlink_to(landing / "self.png")
    (landing / "nowhere.png").symlink_to(pool / "nothing.png")
    return ImageFolder(root=str(landing), link_roots=[str(pool)])


def test_links_are_followed_below_named_roots_only(linked: ImageFolder) -> None:
    found = linked.list_names().names
    assert {path.removeprefix(f"{linked.path}/"): regular for path, regular in found.items()} == {
        "daisy/a.png": True,
        "daisy/d.png": True,
        "again/b.png": True,  # the first link to the folder, by name; the second is only listed itself
        "again/landing": False,
        "again/loop": False,
        "roses": False,
        "private": False,
        "e.png": False,
        "up": False,
        "self.png": False,
        "nowhere.png": False,
    }
    files = {file.path: file for file in list_files(linked)}
    assert {path: file.regular for path, file in files.items()} == found, "a file's state agrees with the listing"
    lengths = {path.removeprefix(f"{linked.path}/"): file.length for path, file in files.items() if file.regular}
    assert lengths == {"daisy/a.png": len(png(1)), "daisy/d.png": len(png(3)), "again/b.png": len(png(2))}


def test_without_roots_no_link_is_followed(linked: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = linked.model_copy(update={"link_roots": []})
    resolved: list[str] = []
    monkeypatch.setattr(os.path, "realpath", resolved.append)  # it hangs where a link leads to a dead mount
    assert [path for path, regular in closed.list_names().names.items() if regular] == [f"{linked.path}/daisy/a.png"]
    assert resolved == []


def test_loops_of_links_end(tmp_path: Path) -> None:
    for number in range(12):  # every folder leads to every other one
        put(tmp_path, f"{number}/{number}.png", b"1")
        for other in range(12):
            (tmp_path / str(number) / f"to {other}").symlink_to(tmp_path / str(other))
    folder = ImageFolder(root=str(tmp_path), link_roots=["/"])
    assert sum(folder.list_names().names.values()) == 12


def test_followed_files_are_read_and_other_links_are_not(linked: ImageFolder, tmp_path: Path) -> None:
    limits = Limits(link_roots=linked.real_link_roots)
    for name, number in (("daisy/d.png", 3), ("again/b.png", 2), ("daisy/a.png", 1)):
        inspection = inspect_file(f"{linked.path}/{name}", len(png(number)), limits)
        assert (inspection.state, inspection.content) == (CURRENT, png(number)), name
        if name != "daisy/a.png":
            assert inspect_file(f"{linked.path}/{name}", len(png(number)), Limits()).reason == "unreadable_file"
    assert inspect_file(f"{linked.path}/e.png", len(png(4)), limits).reason == "unreadable_file"
    # A link that changes its target after the listing.
    (tmp_path / "landing" / "daisy" / "d.png").unlink()
    (tmp_path / "landing" / "daisy" / "d.png").symlink_to(tmp_path / "private" / "c.png")
    with pytest.raises(OSError, match="Too many levels"):
        read_content(f"{linked.path}/daisy/d.png", length=len(png(4)), link_roots=linked.real_link_roots)


def test_a_linked_file_without_a_copy_in_the_tables_is_quarantined_with_a_remedy(linked: ImageFolder) -> None:
    limits = Limits(content_bytes=10, link_roots=linked.real_link_roots)
    linked_file = inspect_file(f"{linked.path}/daisy/d.png", len(png(3)), limits)
    assert (linked_file.state, linked_file.reason) == (QUARANTINED, "too_large")
    assert "put the file itself into the landing folder" in str(linked_file.message)
    assert inspect_file(f"{linked.path}/daisy/a.png", len(png(1)), limits).state == CURRENT
