"""The landing folder is taken in once, whatever its files hold and whatever becomes of them."""

import os
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.featured_images import featured_images
from image_assets.data.folder_changes import FolderChanges
from image_assets.data.image_files import RETRY_UNREADABLE_AFTER, Ledger, read_ledger
from image_assets.data.ingestion import append_new_files, to_limits
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.files.file_system import to_name
from resources.files.image_folder import ImageFolder
from tests.support.data_run import run_data
from tests.support.images import jpeg, png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes
from tests.support.tables import pass_time

pytestmark = pytest.mark.spark

NAMES = [
    b"with a space.png",
    b"%20.png",
    b"a#b?.png",
    b"2026-06-01 12:30:00.png",
    "Blüte 😀.png".encode(),
    b"two\nlines.png",
    b"no \xff utf-8.png",
]


def take_in(delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig | None = None) -> FolderChanges:
    return ingest(delta_tables, image_folder, config or IngestConfig(), dg.get_dagster_logger())


def states(delta_tables: DeltaTables) -> dict[str, tuple[str, str | None]]:
    """State and reason of each file in the ledger, by the file's name."""
    return {Path(path).name: (known.state, known.reason) for path, known in read_ledger(delta_tables).items()}


def image_ids(delta_tables: DeltaTables) -> list[tuple[str, str]]:
    """Name and image_id of each row of raw_images."""
    rows = delta_tables.dataframe(RAW_IMAGES).select("path", "image_id").collect()
    return sorted((Path(row.path).name, row.image_id) for row in rows)


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def older(file: Path, seconds: int) -> None:
    stamp = file.stat().st_mtime - seconds
    os.utime(file, (stamp, stamp))


def test_bytes_and_names_are_those_on_disk_and_a_second_run_writes_nothing(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    on_disk = {os.fsencode(landing) + b"/" + name: png(place) for place, name in enumerate(NAMES)}
    for name, content in on_disk.items():
        Path(os.fsdecode(name)).write_bytes(content)
    assert len(take_in(delta_tables, image_folder).to_read) == len(NAMES)
    rows = delta_tables.dataframe(RAW_IMAGES).collect()
    assert {to_name(row.path): bytes(row.content) for row in rows} == on_disk
    assert all((row.image_id, row.length) == (digest(row.content), len(row.content)) for row in rows)
    listed = {file.path: file.modification_time.replace(tzinfo=None) for file in list_files(image_folder)}
    assert {row.path: row.modification_time for row in rows} == listed
    before = [delta_tables.snapshot(table) for table in (IMAGE_FILES, RAW_IMAGES)]
    assert take_in(delta_tables, image_folder).digest() == ""
    assert [delta_tables.snapshot(table) for table in (IMAGE_FILES, RAW_IMAGES)] == before


def do(action: bytes | str, file: Path, elsewhere: Path) -> None:
    """Write the bytes, or do to the file what the word says."""
    if isinstance(action, bytes):
        file.unlink(missing_ok=True)
        file.write_bytes(action)
        older(file, seconds=len(action))  # a copy may keep any time, earlier than the one before too
    elif action == "touch":
        older(file, seconds=60)
    elif action != "keep":
        file.unlink(missing_ok=True)
        if action == "link":
            file.symlink_to(elsewhere)
        elif action == "pipe":
            os.mkfifo(file)


FIRST, SECOND = jpeg(1), jpeg(2)
CUT = FIRST[: len(FIRST) * 3 // 4]
LARGE = FIRST + bytes(100_000)
# For each file what happens to it before each of four runs, and what the ledger says after each.
LIVES = {
    "stays.jpg": ([FIRST, "keep", "keep", "keep"], [CURRENT, CURRENT, CURRENT, CURRENT]),
    "touched.jpg": ([FIRST, "touch", "touch", "keep"], [CURRENT, CURRENT, CURRENT, CURRENT]),
    "replaced.jpg": ([FIRST, SECOND, FIRST, SECOND], [CURRENT, CURRENT, CURRENT, CURRENT]),
    "gone.jpg": ([FIRST, "delete", "keep", FIRST], [CURRENT, MISSING, MISSING, CURRENT]),
    "text.jpg": ([b"a text", "keep", FIRST, "keep"], ["not_an_image", "not_an_image", CURRENT, CURRENT]),
    "empty.jpg": ([b"", "touch", "delete", b""], ["empty", "empty", MISSING, "empty"]),
    "truncated.jpg": ([CUT, "touch", FIRST, CUT], ["undecodable", "undecodable", CURRENT, "undecodable"]),
    "broken off.jpg": ([FIRST, CUT, "delete", CUT], [CURRENT, "undecodable", MISSING, "undecodable"]),
    "large.jpg": ([FIRST, LARGE, FIRST, LARGE], [CURRENT, "too_large", CURRENT, "too_large"]),
    "link.jpg": (["link", "keep", FIRST, "keep"], ["not_regular", "not_regular", CURRENT, CURRENT]),
    "linked.jpg": ([FIRST, "link", FIRST, "pipe"], [CURRENT, "not_regular", CURRENT, "not_regular"]),
}
ROWS = {name: 1 for name in LIVES} | {"replaced.jpg": 2, "truncated.jpg": 2, "broken off.jpg": 2, "empty.jpg": 0}


def test_whatever_becomes_of_a_file_the_ledger_tells_it_and_no_bytes_are_added_twice(
    delta_tables: DeltaTables, landing: Path, tmp_path: Path
) -> None:
    image_folder = ImageFolder(root=str(landing), settle_seconds=0, size_limit_bytes=100_000)
    elsewhere = put(tmp_path, "elsewhere.jpg", jpeg(3))
    for run in range(4):
        for name, (actions, _) in LIVES.items():
            do(actions[run], landing / name, elsewhere)
        take_in(delta_tables, image_folder)
        if run < 2:  # the bytes of later runs have rows already and are not featured again
            featured_images(delta_tables=delta_tables, image_folder=image_folder)
        ledger = {Path(path).name: known for path, known in read_ledger(delta_tables).items()}
        found = {name: known.reason if known.state == QUARANTINED else known.state for name, known in ledger.items()}
        assert found == {name: expected[run] for name, (_, expected) in LIVES.items()}, f"after run {run + 1}"
        for name, known in ledger.items():
            if known.state == CURRENT:
                assert known.image_id == digest((landing / name).read_bytes())
    rows = image_ids(delta_tables)
    assert len(set(rows)) == len(rows)
    assert {name: sum(row[0] == name for row in rows) for name in LIVES} == ROWS
    attempts = {Path(row.path).name: row.attempts for row in delta_tables.dataframe(IMAGE_FILES).collect()}
    assert (attempts["stays.jpg"], attempts["text.jpg"], attempts["link.jpg"]) == (1, 2, 2), (
        "an unchanged file is not read again"
    )


def test_a_file_that_is_being_written_is_pending_and_then_taken_in_once(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    file = put(landing, "a.png", png(1))
    put(landing, "b.png", png(2))
    take_in(delta_tables, image_folder)
    whole = threading.Event()

    def keep_touching() -> None:
        while not whole.wait(0.05):
            file.touch()

    file.touch()
    writer = threading.Thread(target=keep_touching)
    writer.start()
    try:
        put(landing, "c.png", png(3))
        take_in(delta_tables, ImageFolder(root=str(landing), settle_seconds=0.5))
    finally:
        whole.set()
        writer.join()
    assert states(delta_tables) == {
        "a.png": (PENDING, "being_written"),
        "b.png": (CURRENT, None),
        "c.png": (CURRENT, None),
    }
    take_in(delta_tables, image_folder)
    assert states(delta_tables)["a.png"] == (CURRENT, None)
    assert len(image_ids(delta_tables)) == 3


def test_a_run_killed_before_the_ledger_was_written_is_simply_run_again(
    delta_tables: DeltaTables, image_folder: ImageFolder, eight_images: dict[str, bytes]
) -> None:
    delta_tables.create(RAW_IMAGES)
    progress = delta_tables.progress_line("read", 5, "files")
    executor = executor_for(delta_tables.pyspark, 0)
    files = list_files(image_folder)[:5]
    append_new_files(delta_tables, files, Ledger.of({}), to_limits(image_folder), executor, progress)
    assert dict(read_ledger(delta_tables)) == {}
    take_in(delta_tables, image_folder)
    assert image_ids(delta_tables) == sorted(
        (Path(name).name, digest(content)) for name, content in eight_images.items()
    )
    assert set(states(delta_tables).values()) == {(CURRENT, None)}


def test_a_ledger_that_does_not_say_what_it_speaks_of_is_left_as_it_is(
    delta_tables: DeltaTables, image_folder: ImageFolder, eight_images: dict[str, bytes]
) -> None:
    take_in(delta_tables, image_folder)
    for commit in Path(delta_tables.uri(IMAGE_FILES), "_delta_log").glob("*.json"):
        lines = commit.read_text().splitlines()
        commit.write_text("\n".join(line for line in lines if not line.startswith('{"txn"')))
    before = states(delta_tables)
    assert take_in(delta_tables, image_folder).digest() == ""
    assert states(delta_tables) == before


def test_bytes_replaced_under_the_same_size_and_time_are_found_by_the_sweep_also_when_they_return(
    delta_tables: DeltaTables, landing: Path
) -> None:
    image_folder = ImageFolder(root=str(landing), settle_seconds=0)
    file = put(landing, "a.png", png(1))
    first = file.read_bytes()
    second = first[:-1] + bytes([first[-1] ^ 1])  # the last byte of the last checksum: another image to the byte
    status = file.stat()
    take_in(delta_tables, image_folder)
    for content, rows in ((second, 2), (first, 2), (second, 2)):
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert take_in(delta_tables, image_folder).to_read == (), "size and time tell nothing"
        take_in(delta_tables, image_folder, IngestConfig(part=0))
        (known,) = read_ledger(delta_tables).values()
        assert (known.state, known.image_id) == (CURRENT, digest(content))
        assert delta_tables.dataframe(RAW_IMAGES).count() == rows


def test_a_file_that_could_not_be_read_for_a_while_is_ingested_later(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    file = put(landing, "a.png", png(1))
    file.chmod(0o000)
    with obeying_modes():
        take_in(delta_tables, image_folder)
    file.chmod(0o644)
    assert states(delta_tables) == {"a.png": (QUARANTINED, "unreadable_file")}
    assert take_in(delta_tables, image_folder).digest() == "", "not at once"
    pass_time(delta_tables, RETRY_UNREADABLE_AFTER)
    take_in(delta_tables, image_folder)
    assert states(delta_tables) == {"a.png": (CURRENT, None)}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="ext4 keeps no time that is far enough from now; tmpfs does")
def test_a_file_with_an_impossible_time_is_ingested_as_any_other(delta_tables: DeltaTables) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as landing:
        for number, seconds in enumerate((2**55, -(2**55), 95_617_584_001.7, -62_135_596_801, 1_800_000_000)):
            file = put(Path(landing), f"{number}.png", png(number))
            os.utime(file, ns=(0, int(seconds * 10**9)))
        folder = ImageFolder(root=landing, settle_seconds=0)
        run_data(delta_tables, folder)
        assert set(states(delta_tables).values()) == {(CURRENT, None)}
        for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES):
            assert delta_tables.dataframe(table).count() == 5
        years = {row.modification_time.year for row in delta_tables.dataframe(RAW_IMAGES).collect()}
        assert years == {1, 2027, 4999, 5000, 9999} or years == {1, 2027, 5000, 9999}
        assert take_in(delta_tables, folder).digest() == "", "recorded as they are"
