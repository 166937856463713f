"""Tables take rows once, follow each other from where they stopped, and stay readable by any Delta reader."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType

from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables, StreamPosition
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, codecs
from resources.delta.table import Table
from resources.delta.table_layout import SMALL_FILES, FileSizes
from tests.support.tables import upsert

pytestmark = pytest.mark.spark

COLUMNS = StructType(
    [StructField("name", StringType()), StructField("number", LongType()), StructField("content", BinaryType())]
)
FLOWERS = Table("flowers", keys=("name",), columns=COLUMNS)
BOUQUETS = Table("bouquets", keys=("name",), columns=COLUMNS)
FOLLOWED = COLUMNS.fieldNames()


def flowers(delta_tables: DeltaTables, *names: str, number: int = 1) -> DataFrame:
    rows = [(name, number, b"\x00" * 2000) for name in names]
    return delta_tables.spark.createDataFrame(rows, COLUMNS).coalesce(1)


def names(delta_tables: DeltaTables, table: Table) -> list[str]:
    return sorted(row.name for row in delta_tables.dataframe(table).select("name").collect())


def follow(delta_tables: DeltaTables) -> int:
    """Rows that bouquets get from flowers."""
    return delta_tables.follow(FLOWERS, FOLLOWED, BOUQUETS, by=lambda rows: rows).rows_added


def test_a_transaction_that_is_repeated_adds_no_row(delta_tables: DeltaTables) -> None:
    for transaction in (("writer", 7), ("writer", 7), ("other writer", 7), ("writer", 8)):
        delta_tables.append(flowers(delta_tables, "rose"), FLOWERS, transaction=transaction)
    assert names(delta_tables, FLOWERS) == ["rose"] * 3


def test_a_table_follows_another_without_loss_or_repetition(delta_tables: DeltaTables, home: Path) -> None:
    delta_tables.append(flowers(delta_tables, "rose", "daisy"), FLOWERS)
    assert follow(delta_tables) == 2
    before = delta_tables.snapshot(BOUQUETS)
    assert follow(delta_tables) == 0
    assert delta_tables.snapshot(BOUQUETS) == before, "nothing new is no new version"

    delta_tables.append(flowers(delta_tables, "tulip"), FLOWERS)
    assert follow(delta_tables) == 1
    newest = max((home / "checkpoints" / "bouquets" / "commits").glob("[0-9]*"), key=lambda file: int(file.name))
    newest.unlink()
    newest.with_name(f".{newest.name}.crc").unlink()
    assert follow(delta_tables) == 0, "cut off after its rows were appended, the batch is handed over again"

    shutil.rmtree(home / "checkpoints" / "bouquets")
    assert follow(delta_tables) == 0, "without its checkpoint it starts from the first row"
    delta_tables.append(flowers(delta_tables, "lily"), FLOWERS)
    assert follow(delta_tables) == 1, "numbers of batches begin again, and no row is taken for a repeated one"
    assert names(delta_tables, BOUQUETS) == ["daisy", "lily", "rose", "tulip"]


def test_a_stream_whose_files_are_gone_compares_rows_by_their_keys(delta_tables: DeltaTables, home: Path) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    assert delta_tables.stream_position("bouquets") is None
    assert follow(delta_tables) == 1
    position = delta_tables.stream_position("bouquets")
    log = DeltaTable(delta_tables.uri(FLOWERS))
    assert position == StreamPosition(version=log.version() + 1, whole=False, table_id=str(log.metadata().id))
    for name in ("daisy", "tulip"):
        delta_tables.append(flowers(delta_tables, name), FLOWERS)
    log = DeltaTable(delta_tables.uri(FLOWERS))
    log.optimize.compact()
    log.vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert follow(delta_tables) == 2
    assert follow(delta_tables) == 0
    assert names(delta_tables, BOUQUETS) == ["daisy", "rose", "tulip"]


def test_a_table_that_was_made_anew_is_followed_from_its_first_row(delta_tables: DeltaTables, home: Path) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    assert follow(delta_tables) == 1
    shutil.rmtree(delta_tables.uri(FLOWERS))
    delta_tables.append(flowers(delta_tables, "tulip"), FLOWERS)
    assert follow(delta_tables) == 1, "also where its versions have the numbers of the former one's"
    assert names(delta_tables, BOUQUETS) == ["rose", "tulip"]


def test_spark_starts_no_stream_where_nothing_is_new(delta_tables: DeltaTables, home: Path) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    assert follow(delta_tables) == 1
    metadata = home / "checkpoints" / "bouquets" / "metadata"
    metadata.rename(metadata.with_name("elsewhere"))
    metadata.with_name(".metadata.crc").unlink(missing_ok=True)
    DeltaTable(delta_tables.uri(FLOWERS)).optimize.compact()
    assert follow(delta_tables) == 0
    assert not metadata.exists(), "Spark would have written it again"


def test_pinned_tables_are_as_they_were_and_written_by_nobody(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    before, changed = delta_tables.snapshot(FLOWERS), delta_tables.last_change(FLOWERS)
    delta_tables.append(flowers(delta_tables, "daisy"), FLOWERS)
    pinned = delta_tables.as_of({"flowers": before.version})
    assert names(pinned, FLOWERS) == ["rose"]
    assert pinned.read_keys(FLOWERS) == {("rose",)}
    assert (pinned.version(FLOWERS), pinned.snapshot(FLOWERS)) == (before.version, before)
    assert pinned.last_change(FLOWERS) == changed
    assert names(delta_tables, FLOWERS) == ["daisy", "rose"]
    for write in (
        lambda: pinned.append(flowers(delta_tables, "lily"), FLOWERS),
        lambda: pinned.overwrite(flowers(delta_tables, "lily"), FLOWERS),
        lambda: pinned.update(flowers(delta_tables, "lily"), FLOWERS, ["number"]),
        lambda: pinned.compact(FLOWERS),
        lambda: pinned.create(BOUQUETS),
        lambda: pinned.append_files(FLOWERS, []),
        lambda: pinned.merge(pinned.read(FLOWERS, FOLLOWED), FLOWERS, updates={}),
    ):
        with pytest.raises(PermissionError, match=r"only read: \{'flowers': 1\}"):
            write()
    for read in (pinned.dataframe, pinned.version, lambda table: pinned.read(table, FOLLOWED)):
        with pytest.raises(ValueError, match="bouquets is not pinned at a Delta version: flowers are"):
            read(BOUQUETS)
    with pytest.raises(DeltaError):
        delta_tables.as_of({"flowers": 99}).read(FLOWERS, FOLLOWED)
    assert delta_tables.version(FLOWERS) == before.version + 1


def test_tasks_write_rows_themselves_and_set_others_aside(delta_tables: DeltaTables) -> None:
    aside = []

    def without_thorns(rows: Iterable[Row]) -> Iterator[Row | SetAside]:
        for row in rows:
            yield SetAside({"name": row["name"]}) if row["name"] == "rose" else row

    def pick(new: NewRows) -> list[WrittenFile]:
        written = delta_tables.write_by_tasks(new, FOLLOWED, BOUQUETS, by=without_thorns)
        aside.extend(row["name"] for row in written.aside)
        return written.files

    def follow_by_tasks() -> int:
        return delta_tables.follow_by_tasks(FLOWERS, BOUQUETS, by=pick).rows_added

    delta_tables.append(flowers(delta_tables, "rose", "daisy", "lily"), FLOWERS)
    assert (follow_by_tasks(), follow_by_tasks(), aside) == (2, 0, ["rose"])
    changed = delta_tables.last_change(BOUQUETS)
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    assert (follow_by_tasks(), follow_by_tasks(), aside) == (0, 0, ["rose", "rose"]), "set aside once, not each time"
    assert delta_tables.last_change(BOUQUETS) == changed, "a commit that only says how far it follows changes no row"
    delta_tables.append(flowers(delta_tables, "tulip"), FLOWERS)
    assert follow_by_tasks() == 1
    assert names(delta_tables, BOUQUETS) == ["daisy", "lily", "tulip"]
    assert codecs(delta_tables.dataframe(BOUQUETS).inputFiles(), "content") == {"UNCOMPRESSED"}


def test_tables_that_were_made_with_fewer_columns_are_followed_read_and_written(delta_tables: DeltaTables) -> None:
    of_old = [Table(table.name, ("name",), StructType(COLUMNS.fields[:1])) for table in (FLOWERS, BOUQUETS)]
    rose = delta_tables.spark.createDataFrame([("rose",)], "name string")
    delta_tables.append(rose, of_old[0])
    delta_tables.follow(of_old[0], ["name"], of_old[1], by=lambda rows: rows)
    changed = delta_tables.last_change(BOUQUETS)
    delta_tables.append(flowers(delta_tables, "daisy", number=2), FLOWERS)
    delta_tables.create(BOUQUETS)
    assert delta_tables.last_change(BOUQUETS) == changed, "a column more changes no row"
    assert follow(delta_tables) == 1
    upsert(flowers(delta_tables, "rose", number=3), delta_tables, BOUQUETS)
    found = {
        table: sorted(delta_tables.dataframe(table).select("name", "number").collect()) for table in (FLOWERS, BOUQUETS)
    }
    assert found == {FLOWERS: [("daisy", 2), ("rose", None)], BOUQUETS: [("daisy", 2), ("rose", 3)]}


def test_tasks_follow_tables_that_were_made_with_fewer_columns(delta_tables: DeltaTables) -> None:
    of_old = [Table(table.name, ("name",), StructType(COLUMNS.fields[:1])) for table in (FLOWERS, BOUQUETS)]
    delta_tables.append(delta_tables.spark.createDataFrame([("rose",)], "name string"), of_old[0])
    delta_tables.create(of_old[1])

    def pick(new: NewRows) -> list[WrittenFile]:
        assert new.read(FOLLOWED).num_rows == 2
        return delta_tables.write_by_tasks(new, FOLLOWED, BOUQUETS, by=lambda rows: rows).files

    delta_tables.append(flowers(delta_tables, "daisy"), FLOWERS)
    assert delta_tables.follow_by_tasks(FLOWERS, BOUQUETS, by=pick).rows_added == 2
    rows = delta_tables.dataframe(BOUQUETS).select("name", "number").collect()
    assert sorted(rows) == [("daisy", 1), ("rose", None)]


def test_a_part_of_a_table_follows_by_itself(delta_tables: DeltaTables, home: Path) -> None:
    numbered = Table("numbered", keys=("name", "number"), columns=COLUMNS)

    def follow_as(number: int) -> int:
        return delta_tables.follow(
            FLOWERS,
            FOLLOWED,
            numbered,
            by=lambda rows: rows.selectExpr("name", f"bigint({number}) number", "content"),
            only={"number": number},
        ).rows_added

    delta_tables.append(flowers(delta_tables, "rose", "daisy"), FLOWERS)
    assert [follow_as(1), follow_as(2)] == [2, 2]
    shutil.rmtree(home / "checkpoints" / "numbered" / "2")
    assert [follow_as(2), follow_as(1)] == [0, 0]


def test_compaction_changes_files_only_and_compresses_nothing(delta_tables: DeltaTables) -> None:
    rows = delta_tables.spark.range(0, SMALL_FILES, 1, SMALL_FILES).selectExpr(
        "string(id) name", "id number", "cast(repeat('x', 500) AS binary) content"
    )
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    delta_tables.compact(FLOWERS)
    assert delta_tables.version(FLOWERS) == 1, "a few files are left as they are"
    delta_tables.append(rows, FLOWERS)
    before, changed = names(delta_tables, FLOWERS), delta_tables.last_change(FLOWERS)
    delta_tables.compact(FLOWERS)
    files = delta_tables.dataframe(FLOWERS).inputFiles()
    assert len(files) < SMALL_FILES
    assert codecs(files, "content") == {"UNCOMPRESSED"}
    assert names(delta_tables, FLOWERS) == before
    assert delta_tables.version(FLOWERS) > changed == delta_tables.last_change(FLOWERS)


def test_the_last_change_is_the_last_that_changed_rows_and_has_its_note(delta_tables: DeltaTables) -> None:
    delta_tables.overwrite(flowers(delta_tables, "rose", "daisy"), FLOWERS, note="of May")
    delta_tables.append(flowers(delta_tables), FLOWERS)
    assert (delta_tables.last_note(FLOWERS), delta_tables.last_change(FLOWERS)) == ("of May", 1)
    delta_tables.overwrite(flowers(delta_tables), FLOWERS, note="of winter")
    assert delta_tables.last_note(FLOWERS) == "of winter", "rows that leave are a change, also when none come"
    assert names(delta_tables, FLOWERS) == []


def test_the_newest_rows_are_those_that_a_change_brought(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    before = delta_tables.snapshot(FLOWERS)
    delta_tables.append(flowers(delta_tables, "tulip", "lily"), FLOWERS)
    change = delta_tables.change_since(before, FLOWERS)
    newest = delta_tables.newest(FLOWERS, change.before, ["name"], limit=10)
    assert sorted(row["name"] for row in newest) == ["lily", "tulip"]
    assert len(delta_tables.newest(FLOWERS, change.before, ["name"], limit=1)) == 1
    assert len(delta_tables.newest(FLOWERS, change.after, ["name"], limit=10)) == 3, "any, where none is new"


def test_the_log_holds_no_statistics_of_image_bytes(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    actions = DeltaTable(delta_tables.uri(FLOWERS)).get_add_actions(flatten=True)
    statistics = {name.removeprefix("min.") for name in actions.schema.names if name.startswith("min.")}
    assert statistics == {"name", "number"}


def test_many_small_appends_rewrite_few_bytes(delta_tables: DeltaTables) -> None:
    table = Table("seeds", keys=("name",), columns=StructType(COLUMNS.fields[:2]))
    delta_tables.create(table)
    appended = 0
    for number in range(100):
        write_deltalake(delta_tables.uri(table), pa.table({"name": ["poppy"], "number": [number]}), mode="append")
        appended += table_files(delta_tables.uri(table)).files[0].size_bytes
        delta_tables.compact(table)
    history = delta_tables.spark.sql(f"DESCRIBE HISTORY delta.`{delta_tables.uri(table)}`").where(
        "operation = 'OPTIMIZE'"
    )
    rewritten = [int(row["operationMetrics"]["numRemovedBytes"]) for row in history.collect()]
    assert len(rewritten) == 3
    assert sum(rewritten) <= appended, "each byte once: rewriting the table each time would be twice as much"
    assert len(table_files(delta_tables.uri(table)).files) < SMALL_FILES
    assert sorted(row.number for row in delta_tables.dataframe(table).collect()) == list(range(100))


def test_large_files_are_not_rewritten_for_small_ones(delta_tables: DeltaTables) -> None:
    limits = FileSizes(minimum_bytes=50_000, maximum_bytes=200_000)
    for name in ("rose", "tulip", "lily"):
        delta_tables.append(flowers(delta_tables, *[name] * 40), FLOWERS)
    large = set(table_files(delta_tables.uri(FLOWERS)).files)
    delta_tables.append(flowers(delta_tables, *["daisy"] * 5), FLOWERS)
    delta_tables.compact(FLOWERS, limits)
    assert delta_tables.version(FLOWERS) == 4, "a few small files are left as they are"
    small = delta_tables.spark.range(0, SMALL_FILES, 1, SMALL_FILES)
    delta_tables.append(small.selectExpr("string(id) name", "id number", "cast('x' AS binary) content"), FLOWERS)
    delta_tables.compact(FLOWERS, limits)
    files = set(table_files(delta_tables.uri(FLOWERS)).files)
    assert large < files
    assert len(files) == len(large) + 2, "the daisies, far larger than the others, wait as well"
