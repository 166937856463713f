"""How a folder differs from the ledger: what is looked at, and what is found."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from image_assets.data.image_files import NOT_REGULAR, FolderChanges, LedgerEntry, folder_changes, to_microseconds
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from resources.files.image_folder import ImageFolder
from tests.support.images import png, put

FILES = 40


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Forty files, of which a tick looks at ten and reads about a fifth."""
    for number in range(FILES):
        put(tmp_path, f"{number:02}.png", png(number))
    return ImageFolder(root=str(tmp_path), sweep_files=10, sweep_bytes=8 * len(png(0)))


@pytest.fixture
def known(folder: ImageFolder) -> dict[str, LedgerEntry]:
    """The ledger after all of them were taken in."""
    return {
        file.path: LedgerEntry(
            CURRENT,
            None,
            digest(Path(file.path.removeprefix("file:"))),
            to_microseconds(file.modification_time),
            file.length,
        )
        for file in folder.list_files()
    }


def digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def names(changes: FolderChanges) -> tuple[list[str], list[str], list[str]]:
    """The names of the files to read, of those that are no regular files, and of those that are gone."""
    read, irregular = ([Path(file.path).name for file in files] for files in (changes.to_read, changes.irregular))
    return sorted(read), sorted(irregular), sorted(Path(path).name for path in changes.missing)


def replace_unnoticeably(file: Path) -> None:
    """Other bytes of the same length, under the same time."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "nothing": (lambda file: None, ([], [], [])),
    "longer": (lambda file: file.write_bytes(png(1) + b"0"), (["07.png"], [], [])),
    "another time": (lambda file: os.utime(file, ns=(0, 1_000)), (["07.png"], [], [])),
    "gone": (lambda file: file.unlink(), ([], [], ["07.png"])),
    "renamed": (lambda file: file.rename(file.with_name("99.png")), (["99.png"], [], ["07.png"])),
    "a link": (
        lambda file: (file.rename(file.with_suffix(".x")), file.symlink_to(file.with_suffix(".x"))),
        ([], ["07.png"], []),
    ),
    "a pipe": (lambda file: (file.unlink(), os.mkfifo(file)), ([], ["07.png"], [])),
}


@pytest.mark.parametrize(("change", "found"), CHANGES.values(), ids=CHANGES)
def test_every_change_of_size_time_or_kind_is_found(
    folder: ImageFolder, known: dict[str, LedgerEntry], change: Callable[[Path], object], found: tuple
) -> None:
    change(Path(folder.root) / "07.png")
    changes = folder_changes(folder, known, part=None)
    assert names(changes) == found
    assert bool(changes.digest()) == (found != ([], [], []))
    assert changes.checked >= changes.listed - 1
    named = [f"{folder.path}/{name}.png" for name in ("07", "08", "99")]
    assert names(folder_changes(folder, known, None, only=named)) == found
    elsewhere = folder_changes(folder, known, None, only=[f"{folder.path}/09.png"])
    assert (names(elsewhere), elsewhere.listed) == (([], [], []), 1)


def test_only_what_a_listing_would_find_is_looked_for(folder: ImageFolder) -> None:
    for name in ("notes.txt", "small/a.png", "100% b.png"):
        put(Path(folder.root), name, png(1))
    outside = put(Path(folder.root).parent, "outside.png", png(2))
    some = folder.model_copy(update={"exclude": ["small"]})
    wanted = [f"{folder.path}/{name}" for name in ("100%25 b.png", "notes.txt", "small/a.png", f"../{outside.name}")]
    wanted += [f"file:{outside}", f"{folder.path}/none.png"]
    assert list(some.list_paths(wanted).names) == wanted[:1]
    assert list(some.list_paths(wanted).names) == [path for path in wanted if path in some.list_names().names]


def test_new_files_are_found_whatever_their_times_and_whichever_part_is_looked_at(
    folder: ImageFolder, known: dict[str, LedgerEntry]
) -> None:
    for name, nanoseconds in (("old.png", 1), ("new.png", 4_000_000_000_000_000_000)):
        os.utime(put(Path(folder.root), name, png(1)), ns=(nanoseconds, nanoseconds))
    for part in (0, 1, 17):
        changes = folder_changes(folder, known, part)
        assert names(changes) == (["new.png", "old.png"], [], [])
        assert changes.checked < changes.listed


def test_replaced_files_are_found_when_the_parts_have_gone_round(
    folder: ImageFolder, known: dict[str, LedgerEntry]
) -> None:
    longer, unnoticeable = Path(folder.root) / "03.png", Path(folder.root) / "04.png"
    longer.write_bytes(png(3) + b"0")
    replace_unnoticeably(unnoticeable)
    found = [names(folder_changes(folder, known, part))[0] for part in range(20)]
    assert sum("03.png" in files for files in found) == 5, "one part in four"
    assert 2 <= sum("04.png" in files for files in found) <= 6, "about one part in five"
    assert names(folder_changes(folder, known, part=None)) == (["03.png"], [], [])


@pytest.mark.parametrize("state", [PENDING, MISSING])
def test_a_file_that_was_not_whole_or_not_there_is_read(
    folder: ImageFolder, known: dict[str, LedgerEntry], state: str
) -> None:
    path = f"{folder.path}/07.png"
    known[path] = known[path]._replace(state=state)
    assert all(names(folder_changes(folder, known, part)) == (["07.png"], [], []) for part in (None, 0, 1, 2, 3))


def test_what_is_no_regular_file_is_told_once_and_read_when_it_becomes_one(
    folder: ImageFolder, known: dict[str, LedgerEntry]
) -> None:
    link = Path(folder.root) / "link.png"
    link.symlink_to("07.png")
    changes = folder_changes(folder, known, part=0)
    assert names(changes) == ([], ["link.png"], [])
    (file,) = changes.irregular
    time = to_microseconds(file.modification_time)
    known[file.path] = LedgerEntry(QUARANTINED, NOT_REGULAR, None, time, file.length)
    assert names(folder_changes(folder, known, part=None)) == ([], [], [])
    link.unlink()
    put(link.parent, link.name, png(1))
    assert all(names(folder_changes(folder, known, part)) == (["link.png"], [], []) for part in range(4))


def test_a_missing_file_is_told_once(folder: ImageFolder, known: dict[str, LedgerEntry]) -> None:
    path = f"{folder.path}/07.png"
    (Path(folder.root) / "07.png").unlink()
    assert names(folder_changes(folder, known, part=0)) == ([], [], ["07.png"])
    known[path] = known[path]._replace(state=MISSING)
    assert names(folder_changes(folder, known, part=0)) == ([], [], [])
