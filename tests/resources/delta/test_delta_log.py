"""The log lists a table's files, only those of its newest version, newest first."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from resources.delta.delta_log import STATISTICS_PROPERTY, table_files
from resources.delta.parquet_files import row_groups


@pytest.mark.parametrize("folder", ["table", "with a space", "100%", "a#b"])
def test_the_files_are_those_on_disk_newest_first(tmp_path: Path, folder: str) -> None:
    home = tmp_path / folder
    home.mkdir()
    uri = str(home / "flowers")
    assert table_files(uri).files == ()
    write_deltalake(uri, pa.table({"number": [0]}))
    write_deltalake(uri, pa.table({"number": [1, 2, 3]}), mode="overwrite")
    write_deltalake(uri, pa.table({"number": [4, 5]}), mode="append")
    log = table_files(uri)
    assert [rows for rows, _ in row_groups(file.url for file in log.files)] == [2, 3]
    sizes = {file.stat().st_size for file in (home / "flowers").glob("*.parquet")}
    assert {file.size_bytes for file in log.files} < sizes
    assert log.size_bytes == sum(file.size_bytes for file in log.files)


def test_the_columns_of_statistics_are_the_property_of_the_table(tmp_path: Path) -> None:
    names = pa.table({"name": ["rose"], "number": [0]})
    for uri, properties in ((f"{tmp_path}/any", {}), (f"{tmp_path}/named", {STATISTICS_PROPERTY: "number"})):
        write_deltalake(uri, names, configuration=properties)
    assert table_files(f"{tmp_path}/any").statistics_columns == ""
    assert table_files(f"{tmp_path}/named").statistics_columns == "number"
