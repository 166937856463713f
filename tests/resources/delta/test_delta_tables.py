"""Tables are written, compacted and pinned through Spark, and stay readable by any Delta reader."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from pyspark.sql.types import StructType

from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import ColumnChunk, column_chunks, row_groups, write_files
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import SMALL_FILES, TABLE_ROW_GROUP_BYTES, FileSizes, Table, file_layout
from tests.conftest import tables_in
from tests.support.tables import BOUQUETS, COLUMNS, FLOWERS, FOLLOWED, flowers, names, tables_at

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
        lambda: pinned.update([{"name": "rose", "number": 2}], FLOWERS, ["number"]),
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


@pytest.fixture(params=["local", "spark"])
def tables_by(request: pytest.FixtureRequest, delta_spark: DeltaSpark, home: Path) -> DeltaTables:
    """An empty folder of tables, which delta-rs or Spark compacts."""
    return tables_in(home, DeltaSpark(spark_config=delta_spark.spark_config, executor=request.param))


def test_compaction_changes_files_only_and_compresses_nothing(tables_by: DeltaTables) -> None:
    delta_tables = tables_by
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
    assert {chunk for chunk in column_chunks(files) if chunk.column == "content"} == {
        ColumnChunk("content", "UNCOMPRESSED", dictionary=False, statistics=False)
    }
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


@pytest.mark.parametrize("images", [1, 3])
def test_a_local_compaction_makes_row_groups_of_the_usual_size(tmp_path: Path, images: int) -> None:
    delta_tables = tables_at(tmp_path / "tables")
    delta_tables.create(FLOWERS)
    content = bytes(TABLE_ROW_GROUP_BYTES // 20 // images)
    for number in range(SMALL_FILES):
        rows = [{"name": f"{number} {image}", "number": image, "content": content} for image in range(images)]
        files = list(write_files(rows, delta_tables.uri(FLOWERS), file_layout(FLOWERS)))
        delta_tables.append_files(FLOWERS, files)
    before = delta_tables.read(FLOWERS, FOLLOWED).sort_by("name")
    delta_tables.compact(FLOWERS)
    files = table_files(delta_tables.uri(FLOWERS)).files
    assert [rows for rows, _ in row_groups(file.url for file in files)] == [20 * images - 1, 12 * images + 1]
    assert delta_tables.read(FLOWERS, FOLLOWED).sort_by("name") == before
    version = delta_tables.version(FLOWERS)
    delta_tables.compact(FLOWERS)
    assert delta_tables.version(FLOWERS) == version, "there is nothing left to join"


def test_many_small_appends_rewrite_few_bytes(tables_by: DeltaTables) -> None:
    delta_tables = tables_by
    table = Table("seeds", keys=("name",), columns=StructType(COLUMNS.fields[:2]))
    delta_tables.create(table)
    appended = 0
    for number in range(100):
        write_deltalake(delta_tables.uri(table), pa.table({"name": ["poppy"], "number": [number]}), mode="append")
        appended += table_files(delta_tables.uri(table)).files[0].size_bytes
        delta_tables.compact(table)
    metrics = [row["operationMetrics"] for row in delta_tables.history(table) if row["operation"] == "OPTIMIZE"]
    rewritten = [
        int(of["numRemovedBytes"] if "numRemovedBytes" in of else json.loads(of["filesRemoved"])["totalSize"])
        for of in metrics
    ]
    assert len(rewritten) == 3
    assert sum(rewritten) <= appended, "each byte once: rewriting the table each time would be twice as much"
    assert len(table_files(delta_tables.uri(table)).files) < SMALL_FILES
    assert sorted(delta_tables.read(table, ["number"])["number"].to_pylist()) == list(range(100))


def test_large_files_are_not_rewritten_for_small_ones(delta_spark: DeltaSpark, home: Path) -> None:
    delta_tables = tables_in(home, DeltaSpark(spark_config=delta_spark.spark_config, executor="spark"))
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
