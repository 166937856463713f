import os
import resource
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from gallery.thumbnails import Content, FolderCache, PictureUnavailable, Thumbnails
from tests.gallery.conftest import SmallHome
from tests.support.images import png


def content_of(home: SmallHome, number: int) -> Content:
    image = home.images[number]
    return Content(image["image_id"], image["path"], image["length"])


def thumbnails_of(home: SmallHome) -> Thumbnails:
    return Thumbnails(home.delta_tables, FolderCache(home.home / "gallery"))


def size_of(picture: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(BytesIO(picture)) as image:
        return image.format, image.size


def test_a_thumbnail_is_a_jpeg_of_the_file_and_is_cached(own_home: SmallHome) -> None:
    content = content_of(own_home, 0)
    made = thumbnails_of(own_home).picture(content, "thumbnail")
    assert size_of(made) == ("JPEG", (48, 32))
    Path(content.path.removeprefix("file:")).unlink()
    (own_home.home / "tables").rename(own_home.home / "moved")
    assert thumbnails_of(own_home).picture(content, "thumbnail") == made


@pytest.mark.parametrize("instead", [None, png(77), b"no image", "link"], ids=["gone", "other", "broken", "link"])
def test_a_replaced_file_leads_to_the_image_in_the_table(own_home: SmallHome, instead: bytes | str | None) -> None:
    content = content_of(own_home, 1)
    expected = thumbnails_of(own_home).picture(content_of(own_home, 1), "view")
    file = Path(content.path.removeprefix("file:"))
    file.unlink()
    if instead == "link":
        file.symlink_to(Path(content_of(own_home, 2).path.removeprefix("file:")))
    elif isinstance(instead, bytes):
        file.write_bytes(instead)
    assert Thumbnails(own_home.delta_tables, FolderCache(own_home.home / "other")).picture(content, "view") == expected


def test_an_image_whose_bytes_are_gone_has_no_thumbnail(own_home: SmallHome) -> None:
    with pytest.raises(PictureUnavailable, match="neither the file"):
        thumbnails_of(own_home).picture(Content("0" * 64, "file:/nowhere.png", 10), "thumbnail")


def test_what_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            FolderCache(tmp_path).put("00", b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.glob("*/*")]


def test_the_oldest_files_are_deleted_when_the_folder_is_too_large(tmp_path: Path) -> None:
    stored = FolderCache(tmp_path, max_bytes=1000)
    for number in range(20):
        stored.put(f"{number:02}", b"x" * 100)
        os.utime(tmp_path / f"{number:02}" / f"{number:02}", (number, number))
    sizes = [file.stat().st_size for file in tmp_path.glob("*/*")]
    assert sum(sizes) <= 1000
    assert stored.get("19") == b"x" * 100
    assert stored.get("00") is None
