"""What every materialization of a table says of it."""

from collections.abc import Mapping

import dagster as dg

from resources.delta.delta_log import table_files
from resources.delta.table import Snapshot, Table


def last_metadata(instance: dg.DagsterInstance, asset: str) -> Mapping[str, object]:
    """The metadata of the asset's last materialization, whichever run it was in."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    return {name: value.value for name, value in metadata.items()}


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
