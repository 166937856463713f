import dagster as dg

from scripts.checks import figures


def test_tables_in_a_checks_metadata_are_counted() -> None:
    table = dg.MetadataValue.table([dg.TableRecord({"path": "a"}), dg.TableRecord({"path": "b"})])
    empty = dg.MetadataValue.table([], schema=dg.TableSchema([dg.TableColumn("path")]))
    metadata = {"repeated_keys": dg.MetadataValue.int(0), "files": table, "images": empty}
    assert figures(metadata) == "repeated_keys 0, files 2"
