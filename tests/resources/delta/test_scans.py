"""Scans of local tables: their threads never run Python, which they could abort when it exits."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from deltalake import DeltaTable, write_deltalake

from resources.delta.scans import dataset, scan


@pytest.mark.parametrize("partitions", [None, ["label"]])
def test_a_local_table_is_read_without_python(tmp_path: Path, partitions: list[str] | None) -> None:
    folder = str(tmp_path / "tables of Zoë")
    write_deltalake(folder, pa.table({"number": [1, 2], "label": ["roses", "tulips"]}), partition_by=partitions)
    files = dataset(DeltaTable(folder))
    assert isinstance(files.filesystem, pafs.SubTreeFileSystem)
    assert isinstance(files.filesystem.base_fs, pafs.LocalFileSystem)
    assert sorted(scan(files, ["number"]).to_table()["number"].to_pylist()) == [1, 2]
