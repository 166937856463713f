"""Tasks and DataFrames write what follows a table: each row once, also after a failure."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, codecs
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.delta.writing import write_by_dataframe, write_by_tasks
from tests.conftest import tables_in
from tests.support.tables import BOUQUETS, COLUMNS, FLOWERS, FOLLOWED, flowers, names, upsert

pytestmark = pytest.mark.spark


def follow_flowers(delta_tables: DeltaTables, into: Table = BOUQUETS, columns: StructType = COLUMNS) -> int:
    """Rows that a table gets from flowers, through a DataFrame."""

    def copied(new: NewRows) -> list[WrittenFile]:
        return write_by_dataframe(delta_tables, new, columns, into, by=lambda rows: rows, doing="copied")

    return follow(delta_tables, FLOWERS, into, by=copied).rows_added


def test_a_dataframe_of_new_rows_holds_each_row_once(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose", "daisy"), FLOWERS)
    delta_tables.append(flowers(delta_tables, *map(str, range(200))), FLOWERS)
    assert follow_flowers(delta_tables) == 202
    before = delta_tables.snapshot(BOUQUETS)
    assert follow_flowers(delta_tables) == 0
    assert delta_tables.snapshot(BOUQUETS) == before, "nothing new is no new version"
    delta_tables.append(flowers(delta_tables, "tulip", number=7), FLOWERS)
    assert follow_flowers(delta_tables) == 1
    assert names(delta_tables, BOUQUETS) == sorted(["rose", "daisy", "tulip", *map(str, range(200))])
    rows = delta_tables.dataframe(BOUQUETS).where("name = 'tulip'").collect()
    assert [row.asDict() for row in rows] == [{"name": "tulip", "number": 7, "content": b"\x00" * 2000}]


def test_a_batch_that_fails_before_its_commit_is_processed_again(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)

    def fail(new: NewRows) -> list[WrittenFile]:
        write_by_dataframe(delta_tables, new, COLUMNS, BOUQUETS, by=lambda rows: rows, doing="copied")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        follow(delta_tables, FLOWERS, BOUQUETS, by=fail)
    assert list(Path(delta_tables.uri(BOUQUETS)).glob("*.parquet"))
    assert names(delta_tables, BOUQUETS) == []
    assert follow_flowers(delta_tables) == 1
    assert names(delta_tables, BOUQUETS) == ["rose"]


def test_without_the_files_of_a_version_rows_are_compared_by_their_keys(delta_tables: DeltaTables) -> None:
    delta_tables.append(flowers(delta_tables, "rose"), FLOWERS)
    assert follow_flowers(delta_tables) == 1
    for name in ("daisy", "tulip"):
        delta_tables.append(flowers(delta_tables, name), FLOWERS)
    log = DeltaTable(delta_tables.uri(FLOWERS))
    log.optimize.compact()
    log.vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert [follow_flowers(delta_tables), follow_flowers(delta_tables)] == [2, 0]
    assert names(delta_tables, BOUQUETS) == ["daisy", "rose", "tulip"]


def test_a_part_of_a_table_follows_by_itself(delta_tables: DeltaTables) -> None:
    numbered = Table("numbered", keys=("name", "number"), columns=COLUMNS)
    processed: list[int] = []

    def follow_as(number: int) -> int:
        def numbered_rows(rows: DataFrame) -> DataFrame:
            processed.append(rows.count())
            return rows.selectExpr("name", f"bigint({number}) number", "content")

        def written(new: NewRows) -> list[WrittenFile]:
            return write_by_dataframe(delta_tables, new, COLUMNS, numbered, by=numbered_rows, doing="numbered")

        return follow(delta_tables, FLOWERS, numbered, by=written, part={"number": number}).rows_added

    delta_tables.append(flowers(delta_tables, "rose", "daisy"), FLOWERS)
    delta_tables.append(flowers(delta_tables, "rose", "daisy", number=3), numbered)  # no commit has its position
    assert [follow_as(1), follow_as(2), follow_as(3)] == [2, 2, 0]
    assert processed == [2, 2, 0]
    delta_tables.append(flowers(delta_tables, "tulip"), FLOWERS)
    assert [follow_as(2), follow_as(1), follow_as(3), follow_as(3)] == [1, 1, 1, 0]


@pytest.fixture(params=["local", "spark"])
def tables_by(request: pytest.FixtureRequest, delta_spark: DeltaSpark, home: Path) -> DeltaTables:
    """An empty folder of tables, which one of the executors writes."""
    return tables_in(home, DeltaSpark(spark_config=delta_spark.spark_config, executor=request.param))


def test_tasks_write_rows_themselves_and_set_others_aside(tables_by: DeltaTables) -> None:
    delta_tables, aside = tables_by, []

    def without_thorns(rows: Iterable[Row]) -> Iterator[Row | SetAside]:
        for row in rows:
            yield SetAside({"name": row["name"]}) if row["name"] == "rose" else row

    def pick(new: NewRows) -> list[WrittenFile]:
        written = write_by_tasks(delta_tables, new, FOLLOWED, BOUQUETS, by=without_thorns)
        aside.extend(row["name"] for row in written.aside)
        return written.files

    def follow_by_tasks() -> int:
        return follow(delta_tables, FLOWERS, BOUQUETS, by=pick).rows_added

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
    follow_flowers(delta_tables, of_old[1], of_old[1].columns)
    changed = delta_tables.last_change(BOUQUETS)
    delta_tables.append(flowers(delta_tables, "daisy", number=2), FLOWERS)
    delta_tables.create(BOUQUETS)
    assert delta_tables.last_change(BOUQUETS) == changed, "a column more changes no row"
    assert follow_flowers(delta_tables) == 1
    upsert(flowers(delta_tables, "rose", number=3), delta_tables, BOUQUETS)
    found = {
        table: sorted(delta_tables.dataframe(table).select("name", "number").collect()) for table in (FLOWERS, BOUQUETS)
    }
    assert found == {FLOWERS: [("daisy", 2), ("rose", None)], BOUQUETS: [("daisy", 2), ("rose", 3)]}


def test_tasks_follow_tables_that_were_made_with_fewer_columns(tables_by: DeltaTables) -> None:
    delta_tables = tables_by
    of_old = [Table(table.name, ("name",), StructType(COLUMNS.fields[:1])) for table in (FLOWERS, BOUQUETS)]
    delta_tables.append(delta_tables.spark.createDataFrame([("rose",)], "name string"), of_old[0])
    delta_tables.create(of_old[1])

    def pick(new: NewRows) -> list[WrittenFile]:
        assert new.read(FOLLOWED).num_rows == 2
        return write_by_tasks(delta_tables, new, FOLLOWED, BOUQUETS, by=lambda rows: rows).files

    delta_tables.append(flowers(delta_tables, "daisy"), FLOWERS)
    assert follow(delta_tables, FLOWERS, BOUQUETS, by=pick).rows_added == 2
    rows = delta_tables.dataframe(BOUQUETS).select("name", "number").collect()
    assert sorted(rows) == [("daisy", 1), ("rose", None)]
