"""Whatever happens to the folder and to the runs, the tables say what a plain model says.

`IMAGE_ASSETS_SOAK=50` makes it fifty long random lives in place of a few short ones that are always the same.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from pyspark.errors import StreamingQueryException

from image_assets.data.audit import audit
from image_assets.data.image_files import read_ledger
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.data.raw_images import IngestConfig
from image_assets.data.replayed_files import replay
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import WrittenFile
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.files.file_system import to_name
from resources.files.image_folder import FolderUnavailable, ImageFolder
from tests.conftest import tables_in
from tests.support.data_run import compact_now, contents, run_data
from tests.support.images import jpeg, png

pytestmark = pytest.mark.spark

SOAK = int(os.environ.get("IMAGE_ASSETS_SOAK", "0"))
LIVES, STEPS = (SOAK, 40) if SOAK else (2, 12)
NAMES = ("ball/a.png", "ball/_b.jpg", "cube/c %20#?.png", "cube/two\nlines.jpg", "no label 😀.jpg")
PHOTOGRAPHS = (png(1), png(2), jpeg(3), jpeg(4))
OTHERS = {b"a text": "not_an_image", b"": "empty", jpeg(5)[:-200]: "undecodable", jpeg(6)[:400]: "undecodable"}


class Stopped(Exception):
    """The end of a run, wherever it was."""


class Countdown:
    """The writes that are left, and whether the last one is made."""

    def __init__(self, writes: int, *, after: bool) -> None:
        self.left, self.after = writes, after

    @contextmanager
    def write(self) -> Iterator[None]:
        """One write, or the end before or after it."""
        if self.left <= 1 and not self.after:
            raise Stopped
        yield
        self.left -= 1
        if self.left <= 0 and self.after:
            raise Stopped


class StoppedTables(DeltaTables):
    """Tables whose writer ends when the countdown does."""

    countdown: Any

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        """Commit files, or end."""
        with self.countdown.write():
            return super().append_files(table, files, **more)

    def merge(self, rows: pa.Table, table: Table, **more: Any) -> None:
        """Merge rows, or end."""
        with self.countdown.write():
            super().merge(rows, table, **more)


class LivingFolder(RuleBasedStateMachine):
    """Files come, change and go; runs are made, cut off and repeated."""

    def __init__(self, session: DeltaSpark, place: Path) -> None:
        super().__init__()
        shutil.rmtree(place, ignore_errors=True)
        self.session, self.place, self.landing = session, place, place / "landing"
        self.landing.mkdir(parents=True)
        self.tables = tables_in(place, session)
        self.folder = ImageFolder(root=str(self.landing), settle_seconds=0)
        self.files: dict[str, bytes] = {}
        self.seen: set[str] = set()  # by a run that was not cut off
        self.had: set[tuple[str, bytes]] = set()  # contents that were there in any run
        self.time = 1_700_000_000

    def write(self, name: str, content: bytes) -> None:
        """The file with this content, at a time of its own that may be any."""
        file = self.landing / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        self.touch(name)
        self.files[name] = content

    @rule(name=st.sampled_from(NAMES), content=st.sampled_from(PHOTOGRAPHS))
    def add_or_replace(self, name: str, content: bytes) -> None:
        """A photograph lands."""
        self.write(name, content)

    @rule(name=st.sampled_from(NAMES), content=st.sampled_from(list(OTHERS)))
    def corrupt_or_truncate(self, name: str, content: bytes) -> None:
        """What lands is no photograph."""
        self.write(name, content)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A file goes."""
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.landing / name).unlink()
        del self.files[name]

    @precondition(lambda self: self.files)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, name: str) -> None:
        """A file gets another's name."""
        before = data.draw(st.sampled_from(sorted(self.files)))
        if before != name:
            (self.landing / name).parent.mkdir(exist_ok=True)
            (self.landing / before).replace(self.landing / name)
            self.files[name] = self.files.pop(before)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def touch_one(self, data: st.DataObject) -> None:
        """A file gets another time."""
        self.touch(data.draw(st.sampled_from(sorted(self.files))))

    def touch(self, name: str) -> None:
        """Times go up and down."""
        self.time += 1 if self.time % 2 else -1_000_002
        os.utime(self.landing / name, (self.time, self.time))

    @rule()
    def tick(self) -> None:
        """A run, after which the tables say what the model says, and a second one that changes nothing."""
        self.run()
        self.check()
        before = [self.tables.version(table) for table in (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)]
        run_data(self.tables, self.folder)
        after = [self.tables.version(table) for table in (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)]
        assert after == before, "a second run changes nothing"

    def run(self) -> None:
        """A run; one that finds the folder emptied changes nothing until it is told to believe that."""
        if not self.files and any(entry.state == CURRENT for entry in read_ledger(self.tables).values()):
            before = contents(self.tables)
            with pytest.raises(FolderUnavailable, match="No file is left"):
                run_data(self.tables, self.folder)
            assert contents(self.tables) == before
        run_data(self.tables, self.folder, IngestConfig(accept_missing=True))
        self.had |= set(self.files.items())
        self.seen |= set(self.files)

    @rule(writes=st.integers(1, 4), after=st.booleans())
    def killed_tick(self, writes: int, after: bool) -> None:
        """A run that is cut off at a write."""
        stopped = StoppedTables(
            pyspark=self.session,
            root=self.tables.root,
            checkpoints=self.tables.checkpoints,
            countdown=Countdown(writes, after=after),
        )
        self.had |= set(self.files.items())
        try:
            run_data(stopped, self.folder, IngestConfig(accept_missing=True))
        except (Stopped, StreamingQueryException):
            return
        self.seen |= set(self.files)

    @rule()
    def replay_all(self) -> None:
        """Quarantined files are judged again, which changes nothing: no limit was raised."""
        self.run()
        before = contents(self.tables)
        replay(self.tables, self.folder, reason="*", path="")
        run_data(self.tables, self.folder, IngestConfig(part=0))
        assert contents(self.tables) == before

    @precondition(lambda self: self.seen)
    @rule(table=st.sampled_from([IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES]))
    def compact(self, table: Table) -> None:
        """A table's files are joined, whose rows stay."""
        before = contents(self.tables)
        compact_now(self.tables, table)
        assert contents(self.tables) == before

    def check(self) -> None:
        """The tables against the model."""
        known = {
            os.fsdecode(to_name(path)).removeprefix(f"{self.landing}/"): known
            for path, known in read_ledger(self.tables).items()
        }
        states = {name: (known[name].state, known[name].reason) for name in self.files}
        expected = {
            name: (QUARANTINED, OTHERS[content]) if content in OTHERS else (CURRENT, None)
            for name, content in self.files.items()
        }
        assert states == expected
        assert self.seen <= set(known)
        assert all(known[name].state == MISSING for name in set(known) - set(self.files))
        rows = {
            (os.fsdecode(to_name(row["path"])).removeprefix(f"{self.landing}/"), row["image_id"])
            for row in self.tables.read(RAW_IMAGES, ["path", "image_id"]).to_pylist()
        }
        had = {(name, sha256(content).hexdigest()) for name, content in self.had}
        now = {(name, sha256(content).hexdigest()) for name, content in self.files.items() if content in PHOTOGRAPHS}
        assert now <= rows <= had

    def teardown(self) -> None:
        """After a last run, the audit finds nothing; it takes long, so it comes once a life."""
        self.tick()
        assert [result for result in audit(self.tables, self.folder) if result.broken] == []


@pytest.mark.slow
def test_the_tables_follow_a_living_folder(delta_spark: DeltaSpark, tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: LivingFolder(delta_spark, tmp_path / "place"),
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            derandomize=not SOAK,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
