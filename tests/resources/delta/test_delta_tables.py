"""Tables are written, compacted and pinned through Spark, and stay readable by any Delta reader."""

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from pyspark.sql.types import StructType

from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import codecs
from resources.delta.table import SMALL_FILES, FileSizes, Table
from tests.support.tables import BOUQUETS, COLUMNS, FLOWERS, FOLLOWED, flowers, names

pytestmark = pytest.mark.spark


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
        with pytest.raises(PermissionError, match=r"read-only: \{'flowers': 1\}"):
            write()
    for read in (pinned.dataframe, pinned.version, lambda table: pinned.read(table, FOLLOWED)):
        with pytest.raises(ValueError, match="bouquets is not pinned at a Delta version: flowers are"):
            read(BOUQUETS)
    with pytest.raises(DeltaError):
        delta_tables.as_of({"flowers": 99}).read(FLOWERS, FOLLOWED)
    assert delta_tables.version(FLOWERS) == before.version + 1


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
