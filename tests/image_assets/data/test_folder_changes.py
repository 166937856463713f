"""How a folder differs from the ledger: what is looked at, and what is found."""

import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from image_assets.data.folder_changes import (
    FolderChanges,
    folder_changes,
    new_unreadable,
    remember_device,
    require_plausible,
)
from image_assets.data.image_files import (
    EXCLUDED,
    NOT_REGULAR,
    UNREADABLE_FILE,
    UNREADABLE_FOLDER,
    LedgerEntry,
    to_microseconds,
)
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.data.raw_images import decisions_without_reading
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import FIRST_TIME, LAST_TIME, ImageFile
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.listing import Listing
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes
from tests.support.tables import tables_at

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
        for file in list_files(folder)
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


def test_known_objects_are_not_downloaded_again() -> None:
    system, folder = fsspec.filesystem("memory"), ImageFolder(root="memory://swept/photos")
    system.pipe_file("/swept/photos/a.png", png(1))
    try:
        (file,) = list_files(folder)
        time = to_microseconds(file.modification_time)
        ledger = {file.path: LedgerEntry(CURRENT, None, "of other bytes", time, file.length)}
        assert folder_changes(folder, ledger, part=0).to_read == ()
    finally:
        system.store.clear()


@pytest.mark.parametrize("state", [PENDING, MISSING])
def test_a_file_that_was_not_whole_or_not_there_is_read(
    folder: ImageFolder, known: dict[str, LedgerEntry], state: str
) -> None:
    path = f"{folder.path}/07.png"
    known[path] = known[path]._replace(state=state)
    assert all(names(folder_changes(folder, known, part)) == (["07.png"], [], []) for part in (None, 0, 1, 2, 3))


def test_a_file_that_is_to_be_retried_is_read(folder: ImageFolder, known: dict[str, LedgerEntry]) -> None:
    path = f"{folder.path}/07.png"
    known[path] = known[path]._replace(state=QUARANTINED, reason="timeout", retry=True)
    assert all(names(folder_changes(folder, known, part)) == (["07.png"], [], []) for part in (None, 0, 1, 2, 3))
    known[path] = known[path]._replace(retry=False)
    assert names(folder_changes(folder, known, None)) == ([], [], [])


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


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    """An empty ledger, for the landing folder's device."""
    return tables_at(tmp_path / "tables")


def entries(folder: ImageFolder, current: int, **others: int) -> dict[str, LedgerEntry]:
    """A ledger with so many files in each state."""
    states = [CURRENT] * current + [state for state, count in others.items() for _ in range(count)]
    return {
        f"{folder.path}/{number:04}.png": LedgerEntry(state, None, "1d", 0, 1) for number, state in enumerate(states)
    }


def is_believed(
    folder: ImageFolder,
    ledger: Mapping[str, LedgerEntry],
    tables: DeltaTables,
    part: int | None = None,
    only: tuple[str, ...] = (),
) -> bool:
    """Whether a run would believe what is missing."""
    try:
        require_plausible(folder_changes(folder, ledger, part, only), folder, tables)
    except FolderUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("current", "others", "missing", "believed"),
    [
        (100, {}, 0, True),
        (100, {}, 20, True),
        (100, {}, 21, False),
        (300, {}, 30, True),
        (300, {}, 31, False),
        (21, {}, 20, True),
        (40, {}, 39, False),
        (1, {}, 1, False),
        (3, {}, 3, False),
        (0, {QUARANTINED: 30, PENDING: 2}, 32, True),  # only rejected files are gone
        (100, {MISSING: 500}, 21, False),  # files that were gone before count for nothing
        (10, {QUARANTINED: 100}, 10, True),  # the rejected files are still there
    ],
)
@pytest.mark.parametrize("part", [None, 0, 3])
def test_many_missing_files_or_an_empty_folder_are_not_believed(
    tmp_path: Path, tables: DeltaTables, current: int, others: dict[str, int], missing: int, believed: bool, part: None
) -> None:
    landing = tmp_path / "photos"
    landing.mkdir()
    folder = ImageFolder(root=str(landing), sweep_files=50)
    ledger = entries(folder, current, **others)
    there = [path for path, entry in ledger.items() if entry.state != MISSING][missing:]
    for path in there:
        Path(path.removeprefix("file:")).touch()
    assert is_believed(folder, ledger, tables, part) == believed


def test_a_renamed_or_replaced_only_file_is_believed(tmp_path: Path, tables: DeltaTables) -> None:
    folder = ImageFolder(root=str(put(tmp_path, "photos/b.png", png(1)).parent))
    assert is_believed(folder, entries(folder, 1), tables)


def test_what_is_missing_is_compared_with_all_current_files_if_only_some_are_looked_at(
    tmp_path: Path, tables: DeltaTables
) -> None:
    folder = ImageFolder(root=str(tmp_path))
    for current, missing, believed in ((1000, 100, True), (1000, 101, False), (30, 20, True), (30, 21, False)):
        ledger = entries(folder, current)
        assert is_believed(folder, ledger, tables, only=tuple(ledger)[:missing]) == believed
    assert not is_believed(folder, entries(folder, 3), tables, only=tuple(entries(folder, 3)))


def test_files_that_are_excluded_by_now_are_not_lost(tmp_path: Path, tables: DeltaTables) -> None:
    photographs = [put(tmp_path, f"daisy/{number}.png", png(number)) for number in range(3)]
    litter = [put(tmp_path, f"daisy/@eaDir/{number}/THUMB.png", png(number)) for number in range(30)]
    former = ImageFolder(root=str(tmp_path), litter=[])
    ledger = {
        file.path: LedgerEntry(CURRENT, None, "1d", to_microseconds(file.modification_time), file.length)
        for file in list_files(former)
    }
    folder = ImageFolder(root=str(tmp_path), exclude=["2.png"])
    changes = folder_changes(folder, ledger, part=None)
    assert changes.missing == ()
    assert {Path(path.removeprefix("file:")) for path in changes.excluded} == {*litter, photographs[2]}
    assert (changes.current, changes.current_missing) == (2, 0)
    assert "31 now excluded" in str(changes)
    assert is_believed(folder, ledger, tables)
    decisions = {decision.path: decision for decision in decisions_without_reading(changes, set())}
    decision = decisions[f"{folder.path}/daisy/@eaDir/7/THUMB.png"]
    assert (decision.state, decision.reason) == (MISSING, EXCLUDED)
    # Told once, also by the sensor; taken in again when the filters let them.
    recorded = {path: ledger[path]._replace(state=MISSING) for path in decisions}
    again = folder_changes(folder, ledger | recorded, part=None)
    assert (again.excluded, again.digest(), changes.digest() != "") == ((), "", True)
    assert len(folder_changes(former, ledger | recorded, part=None).to_read) == 31
    for file in photographs[:2]:
        file.unlink()
    assert not is_believed(folder, ledger, tables), "an empty folder, whatever is excluded"


def test_an_empty_prefix_of_a_bucket_is_not_believed(tables: DeltaTables) -> None:
    system = fsspec.filesystem("memory")
    folder = ImageFolder(root="memory://emptied/photos")
    for number in range(3):
        system.pipe_file(f"/emptied/photos/{number:04}.png", png(number))
    try:
        assert is_believed(folder, entries(folder, 4), tables), "one of four is gone"
        system.rm("/emptied/photos", recursive=True)
        assert not is_believed(folder, entries(folder, 4), tables)
    finally:
        system.store.clear()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_on_another_device_not_even_one_missing_file_is_believed(tmp_path: Path, tables: DeltaTables) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        disks = (tmp_path / "disk", Path(other))
        for disk in disks:
            put(disk, "0001.png", png(1))
        landing = tmp_path / "photos"
        landing.symlink_to(disks[0])
        folder = ImageFolder(root=str(landing))
        assert is_believed(folder, entries(folder, 2), tables), "no device is known yet"
        remember_device(tables, folder)
        assert is_believed(folder, entries(folder, 2), tables)
        version = tables.version(IMAGE_FILES)
        remember_device(tables, folder)
        assert tables.version(IMAGE_FILES) == version, "written only when it changes"
        assert tables.last_change(IMAGE_FILES) < version, "no row has changed"
        landing.unlink()
        landing.symlink_to(disks[1])
        with pytest.raises(FolderUnavailable, match=r"^1 of 2 current .*another file system.*accept_missing: true"):
            require_plausible(folder_changes(folder, entries(folder, 2), None), folder, tables)
        put(disks[1], "0000.png", png(0))
        assert is_believed(folder, entries(folder, 2), tables), "a device with all the files may be a copy"
        remember_device(tables, folder)
        (disks[1] / "0000.png").unlink()
        assert is_believed(folder, entries(folder, 2), tables)


def test_an_unreadable_folder_is_told_once_and_the_files_in_it_keep_their_state(
    folder: ImageFolder, known: dict[str, LedgerEntry]
) -> None:
    landing = Path(folder.root)
    put(landing, "private/a.png", png(50))
    inside, path = f"{folder.path}/private/a.png", f"{folder.path}/private"
    known[inside] = LedgerEntry(CURRENT, None, "1d", 1, 1)
    put(landing, "99.png", png(51))
    (landing / "07.png").unlink()
    (landing / "private").chmod(0o000)
    try:
        with obeying_modes():
            changes = folder_changes(folder, known, part=None)
            (decision,) = changes.unreadable
            known[path] = LedgerEntry(decision.state, decision.reason, None, None, None)
            again = [folder_changes(folder, known, part) for part in (None, 0, 1, 2, 3)]
    finally:
        (landing / "private").chmod(0o755)
    assert names(changes) == (["99.png"], [], ["07.png"])
    assert (decision.path, decision.state, decision.reason) == (path, QUARANTINED, UNREADABLE_FOLDER)
    assert "Permission denied" in str(decision.message)
    assert "IMAGE_ASSETS_EXCLUDE=private" in str(decision.message)
    assert changes.digest() not in ("", again[0].digest())
    assert all(names(found) == (["99.png"], [], ["07.png"]) and not found.unreadable for found in again)
    after = folder_changes(folder, known, part=None)
    assert (names(after), after.unreadable) == ((["99.png", "a.png"], [], ["07.png", "private"]), ())
    known[path] = known[path]._replace(state=MISSING)
    assert names(folder_changes(folder, known, part=None))[2] == ["07.png"]


def test_a_file_that_takes_the_name_of_an_unreadable_folder_is_read(
    folder: ImageFolder, known: dict[str, LedgerEntry]
) -> None:
    file = put(Path(folder.root), "shared.png", png(1))
    known[f"{folder.path}/shared.png"] = LedgerEntry(QUARANTINED, UNREADABLE_FOLDER, None, None, None)
    assert all(names(folder_changes(folder, known, part))[0] == [file.name] for part in (None, 0, 1, 2, 3))


def test_a_file_whose_state_cannot_be_read_is_told_once_unless_it_is_known() -> None:
    problem = ImageFile.unreadable("file:/photos/a.png", "Input/output error")
    listing = Listing({problem.path: True}, lambda path: problem)
    (decision,) = new_unreadable(listing, [problem], {})
    assert (decision.path, decision.state, decision.reason) == (problem.path, QUARANTINED, UNREADABLE_FILE)
    for state, told in ((CURRENT, 0), (PENDING, 0), (QUARANTINED, 0), (MISSING, 1)):
        known = {problem.path: LedgerEntry(state, None, None, 1, 1)}
        assert len(list(new_unreadable(listing, [problem], known))) == told


def test_times_that_tables_cannot_hold_change_nothing_once_they_are_recorded() -> None:
    for time in (FIRST_TIME, LAST_TIME, LAST_TIME.replace(year=5000, microsecond=333_333)):
        file = ImageFile("file:/photos/a.png", time, 1, regular=True)
        stored = pa.array([time], pa.timestamp("us", "UTC")).cast(pa.int64())[0].as_py()
        assert LedgerEntry(CURRENT, None, "1d", stored, 1).is_unchanged(file), time
