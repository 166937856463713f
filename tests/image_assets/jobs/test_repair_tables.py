"""Lost tables, rows and logs are restored from whatever has a copy of them, without Spark."""

import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.audit import table_faults
from image_assets.data.image_files import read_ledger
from image_assets.jobs.repair_tables import IRREPLACEABLE, Repair, repair, repair_tables
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    LABEL_CORRECTIONS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.delta_log import LostTable, remember
from resources.delta.following import follow, new_rows
from resources.delta.log_repair import LOG
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.table import Table, file_layout
from resources.files.file_system import stat_file
from resources.files.image_folder import ImageFolder
from tests.gallery.small_home import append, featured, landed, predicted
from tests.support.images import png, put
from tests.support.tables import tables_at

NAMES = ("roses/a.png", "roses/b.png", "tulips/c.png")
Rows = list[dict[str, Any]]


class Home:
    """Three photographs, one of which replaced another, in all tables that follow each other."""

    def __init__(self, root: Path) -> None:
        self.landing = root / "landing"
        self.tables = tables_at(root / "tables")
        self.folder = ImageFolder(root=str(self.landing), settle_seconds=0)
        files = [landed(self.landing, name, png(number), 0) for number, name in enumerate(NAMES)]
        for file in files:
            stat = stat_file(file["path"])
            assert stat
            file["modification_time"] = stat.modification_time
        old = {**files[0], "image_id": sha256(png(9)).hexdigest(), "length": len(png(9))}
        old["modification_time"] -= timedelta(days=1)
        contents = [(old, png(9)), *((file, png(number)) for number, file in enumerate(files))]
        raw = [{name: row[name] for name in RAW} | {"content": content} for row, content in contents]
        append(self.tables, RAW_IMAGES, raw)
        append(self.tables, IMAGE_FILES, files)
        self.follow_all()

    def follow_all(self) -> list[int]:
        """How many rows each following table got."""
        followers = [
            (RAW_IMAGES, FEATURED_IMAGES),
            *((FEATURED_IMAGES, into) for into in (GRAYSCALE_IMAGES, IMAGE_SPLITS)),
        ]
        return [
            follow(self.tables, upstream, into, by=lambda new, into=into: self.written(new, into)).rows_added
            for upstream, into in followers
        ]

    def written(self, new: NewRows, into: Table) -> Sequence[WrittenFile]:
        names = [*RAW, "content"]
        rows: Rows = []
        for row in new.read(names if into == FEATURED_IMAGES else [*names, "label", "label_index"]).to_pylist():
            if into == FEATURED_IMAGES:
                rows.append(featured(row, row["content"], self.landing))
            else:
                more = {"split": "test", "duplicate_group": row["image_id"]} if into == IMAGE_SPLITS else {}
                rows.append({name: value for name, value in {**row, **more}.items() if name in into.columns.names})
        whole = [{**dict.fromkeys(into.columns.names), **row} for row in rows]
        return list(write_files(whole, self.tables.uri(into), file_layout(into)))

    def rows(self, table: Table) -> Rows:
        return sorted(
            self.tables.read(table, table.columns.names).to_pylist(), key=lambda row: (row["path"], row["image_id"])
        )

    def lose(self, table: Table, what: str = "") -> None:
        shutil.rmtree(Path(self.tables.uri(table), what))
        remember.cache_clear()  # as in another process

    def delete(self, table: Table, where: str) -> None:
        # By a merge, because pyarrow 14 cannot read the files of a delete (delta-rs writes string views there).
        log = DeltaTable(self.tables.uri(table))
        log.merge(pa.table({"one": [1]}), where, "new", "old").when_matched_delete().execute()

    def repair(self, *give_up: str) -> list[Repair]:
        return repair(self.tables, self.folder, give_up)


RAW = ("path", "image_id", "length", "modification_time")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_whole_home_needs_no_repair(home: Home) -> None:
    versions = [home.tables.newest_version(table) for table in TABLES]
    assert home.repair() == []
    assert [home.tables.newest_version(table) for table in TABLES] == versions
    assert home.follow_all() == [0, 0, 0]


@pytest.mark.parametrize("what", ["", LOG])
@pytest.mark.parametrize("table", [RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS], ids=lambda t: t.name)
def test_a_lost_table_has_all_its_rows_again(home: Home, table: Table, what: str) -> None:
    before = {each: home.rows(each) for each in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)}
    home.lose(table, what)
    (first, *_) = home.repair()
    assert (first.table, "the table was gone" in first.found) == (table.name, True)
    home.follow_all()
    assert {each: home.rows(each) for each in before} == before, "none is missing, and none is there twice"
    put(home.landing, "roses/new.png", png(50))
    append(home.tables, RAW_IMAGES, [{**before[RAW_IMAGES][0], "image_id": "new", "content": png(50)}])
    assert home.follow_all() == [1, 1, 1], "and new rows go on"
    assert home.repair() == []


@pytest.mark.parametrize("left", [0, 200])
@pytest.mark.parametrize("table", [RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES], ids=lambda t: t.name)
def test_a_table_with_a_file_that_is_cut_off_has_all_its_rows_again(home: Home, table: Table, left: int) -> None:
    before = {each: home.rows(each) for each in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)}
    for file in Path(home.tables.uri(table)).glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:left])
    assert table_faults(home.tables, table).count
    assert any(one.table == table.name and "gone or cut off" in one.found for one in home.repair())
    home.follow_all()
    assert {each: home.rows(each) for each in before} == before
    assert home.repair() == []


@pytest.mark.parametrize("also", [(), (RAW_IMAGES,), (RAW_IMAGES, GRAYSCALE_IMAGES)])
def test_a_lost_ledger_has_the_files_as_they_are(home: Home, also: Sequence[Table]) -> None:
    before = {path: (entry.state, entry.image_id) for path, entry in read_ledger(home.tables).items()}
    gone = home.landing / NAMES[2]
    gone.unlink()
    for table in (IMAGE_FILES, *also):
        home.lose(table)
    (found, restored) = (one for one in home.repair() if one.table == IMAGE_FILES.name)
    assert ("first_seen" in found.not_restorable, restored.restored_rows) == (True, 3)
    after = {path: (entry.state, entry.image_id) for path, entry in read_ledger(home.tables).items()}
    (path,) = (path for path in before if path.endswith(NAMES[2]))
    assert after == {**before, path: ("missing", before[path][1])}
    home.follow_all()
    assert len(home.rows(RAW_IMAGES)) == len(home.rows(FEATURED_IMAGES)) == 4


def test_rows_come_from_the_folder_only_with_the_recorded_content(home: Home) -> None:
    before = home.rows(RAW_IMAGES)
    for table in (RAW_IMAGES, FEATURED_IMAGES):
        home.lose(table)
    (home.landing / NAMES[1]).write_bytes(png(70))
    (home.landing / NAMES[2]).unlink()
    found = [one for one in home.repair() if one.table == RAW_IMAGES.name]
    assert [(one.restored_rows, one.not_restorable) for one in found][-1] == (
        1,
        "2 files are gone or have other content",
    )
    kept = [row for row in before if row["path"].endswith(NAMES[0]) and row["content"] == png(0)]
    assert home.rows(RAW_IMAGES) == kept
    home.follow_all()
    assert [row["image_id"] for row in home.rows(FEATURED_IMAGES)] == [row["image_id"] for row in kept]


MISSING: dict[str, tuple[Table, str]] = {
    "raw_images": (RAW_IMAGES, "old.path LIKE '%a.png'"),
    "featured_images": (FEATURED_IMAGES, "old.path LIKE '%a.png'"),
    "grayscale_images": (GRAYSCALE_IMAGES, "old.path LIKE '%b.png'"),
    "image_splits": (IMAGE_SPLITS, "old.path LIKE '%b.png'"),
    "image_files": (IMAGE_FILES, "old.path LIKE '%b.png'"),
}


@pytest.mark.parametrize("table", MISSING)
def test_rows_that_are_missing_come_back_by_key(home: Home, table: str) -> None:
    tables = (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)
    before = {each: home.rows(each) for each in tables}
    paths = set(read_ledger(home.tables))
    home.delete(*MISSING[table])
    assert home.repair()
    home.follow_all()
    assert {each: home.rows(each) for each in tables} == before
    assert set(read_ledger(home.tables)) == paths
    assert home.repair() == []


def test_predictions_that_are_missing_are_made_by_the_next_run(home: Home) -> None:
    first, *others = home.rows(FEATURED_IMAGES)[1:]
    home.tables.create(IMAGE_PREDICTIONS)
    key = {"model_name": "image_classifier", "model_version": 1, "version_id": "files"}
    rows = [
        {**dict.fromkeys(IMAGE_PREDICTIONS.columns.names), **predicted(one, 1, "roses", 0.9, "files")} for one in others
    ]
    files = list(write_files(rows, home.tables.uri(IMAGE_PREDICTIONS), file_layout(IMAGE_PREDICTIONS)))
    version = home.tables.snapshot(FEATURED_IMAGES).version
    home.tables.append_files(IMAGE_PREDICTIONS, files, follows=(FEATURED_IMAGES, version), part=key)
    assert list(new_rows(home.tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, part=key)) == []
    (found,) = home.repair()
    assert (found.table, found.found) == ("image_predictions", "1 current files have no row: the next run adds them")
    (new,) = new_rows(home.tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, part=key)
    assert first["path"] in new.read(["path"])["path"].to_pylist()


LAST_COMMITS: dict[str, Callable[[Path], object]] = {
    "empty": lambda commit: commit.write_text(""),
    "truncated": lambda commit: commit.write_bytes(commit.read_bytes()[:-20]),
    "missing": lambda commit: commit.unlink(),
}


@pytest.mark.parametrize("table", [RAW_IMAGES, FEATURED_IMAGES, IMAGE_FILES], ids=lambda table: table.name)
@pytest.mark.parametrize("fault", LAST_COMMITS)
def test_rows_of_a_lost_last_commit_come_back(home: Home, table: Table, fault: str) -> None:
    """Of a commit that is missing nothing tells, but the rows that it held."""
    before = {each: home.rows(each) for each in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)}
    ledger = set(read_ledger(home.tables))
    log = Path(home.tables.uri(table), LOG)
    LAST_COMMITS[fault](max(log.glob("*.json")))
    assert home.repair()
    home.follow_all()
    assert {each: home.rows(each) for each in before} == before
    assert set(read_ledger(home.tables)) == ledger
    assert home.repair() == []


@pytest.mark.parametrize("table", IRREPLACEABLE, ids=lambda table: table.name)
def test_a_lost_table_of_people_is_recreated_only_when_somebody_gives_it_up(home: Home, table: Table) -> None:
    append(home.tables, table, [{}])
    home.lose(RAW_IMAGES)
    home.lose(table)
    with pytest.raises(LostTable, match=rf"(?s){table.name} is gone.*give_up: \[{table.name}\].*lost|sent again"):
        home.repair()
    assert not Path(home.tables.uri(table)).exists()
    assert len(home.rows(RAW_IMAGES)) == 4, "the other tables are repaired"
    (found,) = home.repair(table.name)
    assert (found.table, found.not_restorable) == (table.name, IRREPLACEABLE[table])
    assert home.tables.snapshot(table).rows == 0
    with pytest.raises(ValueError, match="Expected some of: label_corrections"):
        home.repair("raw_images")


def test_corrections_come_back_from_the_files_of_a_table_whose_log_is_lost(home: Home) -> None:
    key = {"path": "file:/a.png", "image_id": "1", "label": "roses"}
    rows = [
        {**key, "corrected_at": home.rows(RAW_IMAGES)[0]["modification_time"] + timedelta(hours=n)} for n in range(3)
    ]
    for row in rows:
        append(home.tables, LABEL_CORRECTIONS, [row])
    Path(home.tables.uri(LABEL_CORRECTIONS), "of a killed writer.parquet").write_bytes(b"PAR1 cut off")
    before = home.rows(LABEL_CORRECTIONS)
    home.lose(LABEL_CORRECTIONS, LOG)
    (found,) = home.repair()
    assert (found.restored_rows, found.not_restorable) == (3, "")
    assert home.rows(LABEL_CORRECTIONS) == before


def test_a_repair_that_was_killed_goes_on(home: Home) -> None:
    append(home.tables, LABEL_CORRECTIONS, [{"path": "file:/a.png", "image_id": "1", "label": "roses"}])
    before = home.rows(LABEL_CORRECTIONS)
    home.lose(LABEL_CORRECTIONS, LOG)
    home.tables.recreate(LABEL_CORRECTIONS)  # the first thing that a repair does
    (found,) = home.repair()
    assert (found.found, found.restored_rows) == ("it has no rows, but files with rows", 1)
    assert home.rows(LABEL_CORRECTIONS) == before
    assert home.repair() == []


def test_of_a_row_that_was_updated_the_last_state_comes_back(home: Home) -> None:
    rows = (
        home.tables.read(IMAGE_FILES, IMAGE_FILES.columns.names, pc.field("path").match_substring("a.png"))
        if False
        else None
    )
    assert rows is None
    path = home.rows(RAW_IMAGES)[0]["path"]
    changed = {**dict.fromkeys(IMAGE_FILES.columns.names), "path": path, "state": "quarantined"}
    table = pa.Table.from_pylist([changed], to_arrow_schema(IMAGE_FILES.columns))
    home.tables.merge(table, IMAGE_FILES, updates={"state": "new.state"})
    before = read_ledger(home.tables)
    home.lose(IMAGE_FILES, LOG)
    home.repair()
    assert read_ledger(home.tables) == before
    assert before[path].state == "quarantined"


def test_the_job_reports_what_it_did(home: Home) -> None:
    home.lose(RAW_IMAGES)
    resources = {"delta_tables": home.tables, "image_folder": home.folder}
    for table, expected in ((["raw_images", "raw_images"], "launch ingest_images"), ([], "no table needs a repair")):
        run = repair_tables.execute_in_process(resources=resources)
        (output,) = (event for event in run.all_events if event.event_type_value == "STEP_OUTPUT")
        metadata = output.step_output_data.metadata
        assert [record.data["table"] for record in metadata["repaired"].records] == table
        assert expected in str(metadata["next"].value)
