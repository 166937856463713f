"""Schedules of faults that befall a home and its landing folder, and a plain model of what the tables must hold.

Files come, change and go; disks are unmounted, folders are locked, runs are killed, tables and logs are lost, another
registry counts from 1 again, and the home moves. After every run: each file has the state that its content deserves,
no row is lost or doubled, nothing is accepted that never was in the folder, and what is refused is explained.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from image_assets.data.audit import audit
from image_assets.data.featured_images import follow_raw_images
from image_assets.data.grayscale_images import follow_featured_images
from image_assets.data.image_files import read_ledger
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.data.replayed_files import replay
from image_assets.jobs.repair_tables import repair
from image_assets.models.version_ids import key_of, of_version
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS, RAW_IMAGES
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import BrokenTable, LostTable
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.delta.writing import write_by_tasks
from resources.files.file_system import to_name
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.mlflow.model_registry import ModelVersion
from tests.conftest import tables_in
from tests.support.images import jpeg, png
from tests.support.permissions import obeying_modes

FOLDERS = ("ball", "cube")
NAMES = ("ball/a.png", "ball/_b.jpg", "cube/c %20#?.png", "cube/two\nlines.jpg", "no label 😀.jpg")
ALBUM = tuple(f"album/{number}.png" for number in range(24))  # more than a run believes to be deleted at once
PHOTOGRAPHS = (png(1), png(2), jpeg(3), jpeg(4))
OTHERS = {b"a text": "not_an_image", b"": "empty", jpeg(5)[:-200]: "undecodable", jpeg(6)[:400]: "undecodable"}
BELIEVED_FILES, BELIEVED_SHARE = 20, 0.1
TABLES = (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, IMAGE_PREDICTIONS)


class Killed(Exception):
    """The end of a run, wherever it was."""


class KilledTables(DeltaTables):
    """Tables whose process is killed before or after one of its next writes."""

    writes: Any  # counts them

    last: int
    after: bool

    @contextmanager
    def write(self) -> Iterator[None]:
        """One write, or the end before or after it."""
        is_last = next(self.writes) >= self.last
        if is_last and not self.after:
            raise Killed
        yield
        if is_last:
            raise Killed

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        """Commit files, or end."""
        with self.write():
            return super().append_files(table, files, **more)

    def merge(self, rows: pa.Table, table: Table, **more: Any) -> None:
        """Merge rows, or end."""
        with self.write():
            super().merge(rows, table, **more)


def predict(delta_tables: DeltaTables, version: ModelVersion) -> None:
    """Do what image_predictions does, with a model that answers with its own identity."""

    def answers(images: Iterable[Row]) -> Iterator[Row]:
        columns = dict.fromkeys(IMAGE_PREDICTIONS.columns.fieldNames())
        for image in images:
            yield {**columns, **image, **key_of(version), "label": version.version_id}

    def answer_files(new: NewRows) -> list[WrittenFile]:
        return write_by_tasks(delta_tables, new, ["path", "image_id"], IMAGE_PREDICTIONS, by=answers).files

    follow(delta_tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, by=answer_files, part=key_of(version))


def run(delta_tables: DeltaTables, folder: ImageFolder, version: ModelVersion, config: IngestConfig) -> None:
    """Do what the assets from raw_images to image_predictions do."""
    ingest(delta_tables, folder, config, dg.get_dagster_logger())
    follow_raw_images(delta_tables, folder)
    predict(delta_tables, version)


# What can happen next, and how often compared with the others.
STEPS = {
    "tick": 8,
    "killed_tick": 4,
    "add_or_replace": 8,
    "add_album": 1,
    "delete": 2,
    "rename": 2,
    "touch_one": 1,
    "unmount": 1,
    "mount": 2,
    "deny": 1,
    "allow": 1,
    "move_home": 1,
    "swap_registry": 1,
    "lose_table": 1,
    "truncate_log": 1,
    "replay_all": 1,
}


class Simulation:
    """One schedule of changes, faults and runs; the same seed makes the same one."""

    def __init__(self, session: DeltaSpark, place: Path, seed: int, *, with_spark: bool) -> None:
        self.random, self.steps = Random(seed), list[str]()
        self.session, self.place, self.with_spark = session, place, with_spark
        self.homes = count()
        self.landing = place / "landing"
        self.landing.mkdir(parents=True)
        self.home = place / f"home {next(self.homes)}"
        self.tables = tables_in(self.home, session)
        self.folder = ImageFolder(root=str(self.landing), settle_seconds=0)
        self.files: dict[str, bytes] = {}  # in the landing folder, mounted or not
        self.unmounted = False
        self.denied: dict[str, dict[str, bytes]] = {}  # folders that cannot be read, with the files known in them
        self.seen: set[str] = set()  # by a run that was not killed
        self.had: set[tuple[str, bytes]] = set()  # contents that were there in any run
        self.time = 1_700_000_000
        self.version = self.new_version()

    def live(self, steps: int, *, audited: bool = False) -> None:
        """Takes steps, and ends with runs that find everything as it should be; an audit takes half a minute."""
        try:
            for _ in range(steps):
                (step,) = self.random.choices([*STEPS], [*STEPS.values()])
                self.steps.append(step)
                getattr(self, step)()
            self.end(audited=audited)
        except BaseException as error:
            error.add_note(f"the steps were: {', '.join(self.steps)}")
            raise

    # The world: files

    def write(self, name: str, content: bytes) -> None:
        """Puts a file, with a time that goes up and down."""
        file = self.landing / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        self.files[name] = content
        self.touch(name)

    def touch(self, name: str) -> None:
        """Sets another time."""
        self.time += 1 if self.time % 2 else -1_000_002
        os.utime(self.landing / name, (self.time, self.time))

    def add_or_replace(self) -> None:
        """A file lands: a photograph, a truncated one, or something else."""
        if not self.unmounted:
            self.write(self.random.choice(NAMES), self.random.choice([*PHOTOGRAPHS, *OTHERS]))

    def add_album(self) -> None:
        """Many files land at once."""
        for name in () if self.unmounted else ALBUM:
            self.write(name, PHOTOGRAPHS[0])

    def delete(self) -> None:
        """A file, or all of the album, is deleted."""
        chosen = self.chosen()
        for name in [name for name in self.files if name == chosen or (chosen in ALBUM and name in ALBUM)]:
            (self.landing / name).unlink()
            del self.files[name]

    def rename(self) -> None:
        """A file gets another's name."""
        before, name = self.chosen(), self.random.choice(NAMES)
        if before and before != name:
            (self.landing / name).parent.mkdir(exist_ok=True)
            (self.landing / before).replace(self.landing / name)
            self.files[name] = self.files.pop(before)

    def touch_one(self) -> None:
        """A file gets another time."""
        if name := self.chosen():
            self.touch(name)

    def chosen(self) -> str:
        """Any file in the landing folder; empty if there is none."""
        return self.random.choice(sorted(self.files)) if self.files and not self.unmounted else ""

    # The world: disks, homes, registries

    def unmount(self) -> None:
        """The disk is gone; its mount point is an empty folder."""
        if not self.unmounted:
            self.landing.rename(self.place / "disk")
            self.landing.mkdir()
            self.unmounted = True

    def mount(self) -> None:
        """The disk is back."""
        if self.unmounted:
            self.landing.rmdir()
            (self.place / "disk").rename(self.landing)
            self.unmounted = False

    def deny(self) -> None:
        """A folder cannot be read any more."""
        folder = self.random.choice(FOLDERS)
        if not self.unmounted and folder not in self.denied and (self.landing / folder).is_dir():
            self.run_and_check()
            self.denied[folder] = {name: self.files[name] for name in self.files if name.startswith(f"{folder}/")}
            (self.landing / folder).chmod(0)

    def allow(self) -> None:
        """The folders can be read again."""
        for folder in () if self.unmounted else [*self.denied]:
            (self.landing / folder).chmod(0o755)
            del self.denied[folder]

    def move_home(self) -> None:
        """The home gets another path; the landing folder is outside of it."""
        moved = self.place / f"home {next(self.homes)}"
        if self.home.exists():
            self.home.rename(moved)
        self.home, self.tables = moved, tables_in(moved, self.session)

    def swap_registry(self) -> None:
        """Another registry, which counts its versions from 1 as well."""
        self.version = self.new_version()

    def new_version(self) -> ModelVersion:
        """Version 1 of a registry."""
        tags = {"framework": "none"}
        return ModelVersion(1, "Production", ("production",), f"run {next(self.homes)}", "models:/m/1", tags)

    # Runs

    def visible(self) -> dict[str, bytes]:
        """The files that a run can find."""
        if self.unmounted:
            return {}
        return {name: content for name, content in self.files.items() if not self.denied_folder(name)}

    def denied_folder(self, name: str) -> str | None:
        """The folder that hides a file, if any does."""
        return next((folder for folder in self.denied if name.startswith(f"{folder}/")), None)

    def hidden(self) -> dict[str, bytes]:
        """The files that are known and cannot be looked at."""
        return {} if self.unmounted else {name: held for files in self.denied.values() for name, held in files.items()}

    def must_refuse(self) -> bool:
        """Whether so many current files are missing that a run must not believe it."""
        current = {name for name, entry in self.ledger().items() if entry.state == CURRENT}
        missing = current - self.visible().keys() - self.hidden().keys()
        emptied = missing == current and not self.visible()
        return bool(missing) and (emptied or len(missing) > max(BELIEVED_FILES, BELIEVED_SHARE * len(current)))

    def ledger(self) -> dict[str, Any]:
        """The entries by name in the landing folder."""
        entries = read_ledger(self.tables).items()
        return {os.fsdecode(to_name(path)).removeprefix(f"{self.landing}/"): entry for path, entry in entries}

    def run(self, tables: DeltaTables, *, accept: bool) -> None:
        """One run, as an account that modes apply to."""
        tables.require_whole_logs()
        with obeying_modes() if self.denied else nullcontext():
            run(tables, self.folder, self.version, IngestConfig(accept_missing=accept))
            if self.with_spark:
                follow_featured_images(tables)

    def tick(self) -> None:
        """A run: the tables hold what the model says then, or it changes nothing and says why."""
        if self.must_refuse():
            before = self.contents()
            with pytest.raises(FolderUnavailable, match="accept_missing"):
                self.run(self.tables, accept=False)
            assert self.contents() == before
            if self.random.random() < 0.5:
                return
        self.run_and_check()

    def run_and_check(self) -> None:
        """A run that believes what it finds."""
        self.had |= set(self.visible().items())
        self.run(self.tables, accept=True)
        self.seen |= set(self.visible())
        self.check()

    def killed_tick(self) -> None:
        """A run that is killed at a write."""
        self.had |= set(self.visible().items())
        last, after, accept = self.random.randrange(5), self.random.random() < 0.5, self.random.random() < 0.5
        tables = KilledTables(pyspark=self.session, root=self.tables.root, writes=count(), last=last, after=after)
        try:
            self.run(tables, accept=accept)
        except (Killed, FolderUnavailable):
            return
        self.seen |= set(self.visible())

    def lose_table(self) -> None:
        """A table, or its log, is gone."""
        self.run_and_check()
        table = self.random.choice(TABLES)
        folder = Path(self.tables.uri(table))
        shutil.rmtree(self.random.choice([folder, folder / "_delta_log"]))
        with pytest.raises(LostTable, match="repair_tables"):
            self.run(self.tables, accept=True)
        self.repaired(table)

    def truncate_log(self) -> None:
        """The last commit of a table was not written to the disk when the power failed, or only in part."""
        self.run_and_check()
        table = self.random.choice(TABLES)
        last = max((Path(self.tables.uri(table)) / "_delta_log").glob("*.json"))
        if int(last.stem) == 0:
            return  # without its first commit, a table is lost
        last.write_bytes(last.read_bytes()[: self.random.randrange(last.stat().st_size)])
        with pytest.raises((BrokenTable, ValueError), match="repair_tables"):
            self.run(self.tables, accept=True)
        self.repaired(table)

    def repaired(self, table: Table) -> None:
        """A repair and a run."""
        with obeying_modes() if self.denied else nullcontext():
            repair(self.tables, self.folder)
        if table is IMAGE_FILES:
            self.seen = set()  # it is the only record of files that are not there any more
        self.run_and_check()

    def replay_all(self) -> None:
        """Quarantined files are judged again, which changes nothing: no limit was raised."""
        if not self.with_spark or self.unmounted or self.denied:
            return
        self.run_and_check()
        before = self.contents()
        replay(self.tables, self.folder, reason="*", path="")
        self.run(self.tables, accept=False)
        assert self.contents() == before

    # What must hold

    def contents(self) -> dict[str, list[tuple]]:
        """The rows of the tables, without times and attempts."""
        columns = {
            IMAGE_FILES: ("path", "state", "reason", "image_id", "length"),
            RAW_IMAGES: ("path", "image_id", "length"),
            FEATURED_IMAGES: ("path", "image_id", "label", "perceptual_hash"),
            IMAGE_PREDICTIONS: ("path", "image_id", "version_id", "label"),
        }
        return {
            table.name: sorted((tuple(row.values()) for row in self.tables.read(table, names).to_pylist()), key=str)
            for table, names in columns.items()
        }

    def check(self) -> None:
        """The tables against the model."""
        ledger, files = self.ledger(), self.visible() | self.hidden()
        states = {name: (ledger[name].state, ledger[name].reason) for name in files}
        assert states == {
            name: (QUARANTINED, OTHERS[content]) if content in OTHERS else (CURRENT, None)
            for name, content in files.items()
        }
        assert self.seen <= set(ledger)
        for name in set(ledger) - set(files) - set(self.denied if not self.unmounted else ()):
            assert ledger[name].state == MISSING, name
        had = {(name, sha256(content).hexdigest()) for name, content in self.had}
        now = {(name, sha256(content).hexdigest()) for name, content in files.items() if content in PHOTOGRAPHS}
        assert now <= self.keys(RAW_IMAGES) <= had
        assert now <= self.keys(FEATURED_IMAGES) <= had
        predicted = self.keys(IMAGE_PREDICTIONS, of_version(self.version))
        assert predicted == self.keys(FEATURED_IMAGES), "each image has a prediction of the version"
        answers = self.tables.read(IMAGE_PREDICTIONS, ["label"], of_version(self.version))["label"]
        assert set(answers.to_pylist()) <= {self.version.version_id}, "which is the version's own"

    def keys(self, table: Table, where: pc.Expression | None = None) -> set[tuple[str, str]]:
        """Names and image_ids of a table's rows, of which no two are the same."""
        rows = self.tables.read(table, ["path", "image_id"], where).to_pylist()
        keys = [(os.fsdecode(to_name(row["path"])).removeprefix(f"{self.landing}/"), row["image_id"]) for row in rows]
        assert len(keys) == len(set(keys)), table.name
        return set(keys)

    def end(self, *, audited: bool) -> None:
        """After a last run another one changes nothing, and the audit finds nothing, if asked."""
        self.mount()
        self.allow()
        self.run_and_check()
        before = [self.tables.version(table) for table in TABLES]
        self.run(self.tables, accept=False)
        assert [self.tables.version(table) for table in TABLES] == before, "a second run changes nothing"
        if audited:
            assert [result for result in audit(self.tables, self.folder) if result.broken] == []
