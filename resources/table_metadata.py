"""What every materialization of a table says of it."""

import dagster as dg

from resources.delta_log import table_files
from resources.tables import Snapshot, Table


def table_metadata(table: Table, uri: str, now: Snapshot) -> dict[str, int | dg.MetadataValue | dg.TableColumnLineage]:
    """Rows, bytes and files of the table at `uri` as it is now, its Delta version, and whence its columns come."""
    files = table_files(uri, now.version)
    return {
        "dagster/row_count": now.rows,
        "delta_version": now.version,
        "bytes": files.size_bytes,
        "files": len(files.files),
        "dagster/column_lineage": table.column_lineage,
    }
