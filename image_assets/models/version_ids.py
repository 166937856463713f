"""Which model version a row belongs to: its number alone does not say, because another registry counts from 1 as well.

Rows hold `version_id` beside the number. Rows of releases without that column have an empty one until a run finds the
version in the registry.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from image_assets.schemas import (
    CURRENT_PREDICTIONS,
    IMAGE_PREDICTIONS,
    MODEL_EVALUATIONS,
    PREDICTION_ALERTS,
    PREDICTION_DRIFT,
    STAGE_HISTORY,
    VERSION_AGREEMENTS,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import is_of
from resources.delta.table import Table
from resources.mlflow.model_registry import ALIASES, ModelRegistry, ModelVersion

IN_USE = {*ALIASES, *ALIASES.values()}  # stages and aliases
MAX_CLOCK_SKEW = timedelta(minutes=1)  # between MLflow and this machine
# When a row was written: it cannot be of a version that was registered later.
WRITTEN_AT = {
    MODEL_EVALUATIONS: "evaluated_at",
    STAGE_HISTORY: "changed_at",
    IMAGE_PREDICTIONS: "predicted_at",
    CURRENT_PREDICTIONS: "predicted_at",
    VERSION_AGREEMENTS: "compared_at",
    PREDICTION_DRIFT: "measured_at",
    PREDICTION_ALERTS: "predicted_at",
}
NUMBER_AND_ID = ("model_version", "version_id")
OTHER_NUMBER_AND_ID = ("compared_with", "compared_with_id")  # of version_agreements


def key_of(version: ModelVersion) -> dict[str, object]:
    """The columns that identify the version in every table with rows per model version."""
    return {"model_name": version.name, "model_version": version.version, "version_id": version.version_id}


def of_version(version: ModelVersion) -> pc.Expression:
    """Selects the version's rows."""
    return is_of(key_of(version))


def of_versions(versions: Iterable[ModelVersion]) -> pc.Expression:
    """Selects the rows of any of the versions."""
    selected = pc.scalar(False)
    for version in versions:
        selected |= of_version(version)
    return selected


def unidentified(delta_tables: DeltaTables, *tables: Table) -> bool:
    """Whether any of the tables has rows with an empty version_id."""
    empty = pc.field("version_id") == ""
    return any(delta_tables.read(table, ["version_id"], empty).num_rows for table in tables)


def identify_rows(delta_tables: DeltaTables, versions: Sequence[ModelVersion], *tables: Table) -> None:
    """Fills empty version_ids of rows that versions in the registry have written; in one commit per table and column.

    Rows of a number that was registered after they were written are of another version, and stay as they are.
    """
    for table in tables:
        if delta_tables.newest_version(table) is None:
            continue
        pairs = [pair for pair in (NUMBER_AND_ID, OTHER_NUMBER_AND_ID) if pair[1] in table.columns.names]
        for number, version_id in pairs:
            _identify(delta_tables, versions, table, number, version_id)


def _identify(
    delta_tables: DeltaTables, versions: Sequence[ModelVersion], table: Table, number: str, version_id: str
) -> None:
    written_at = WRITTEN_AT[table]
    rows = delta_tables.read(table, ["model_name", number, written_at], pc.field(version_id) == "").to_pylist()
    found = [
        {"model_name": version.name, number: version.version, version_id: version.version_id, "from": first}
        for version in versions
        if (first := version.created_at and version.created_at - MAX_CLOCK_SKEW)
        and any(
            (row["model_name"], row[number]) == (version.name, version.version) and row[written_at] >= first
            for row in rows
        )
    ]
    if found:
        types = {"model_name": pa.string(), number: pa.int32(), version_id: pa.string()}
        schema = pa.schema([*types.items(), ("from", pa.timestamp("us", "UTC"))])
        same = f"old.{version_id} = '' AND old.model_name = new.model_name AND old.{number} = new.{number}"
        delta_tables.update_where(
            pa.Table.from_pylist(found, schema),
            table,
            updates={version_id: f"new.{version_id}"},
            where=f"{same} AND old.{written_at} >= new.from",
        )


def registry_warning(
    delta_tables: DeltaTables, table: Table, versions: Sequence[ModelVersion], registry: ModelRegistry
) -> str | None:
    """Why the registry seems to be another one than before, judged by a table's rows; None if it does not.

    It has none of the versions that have rows, or it gave the number of one to another version, which is in use.
    """
    if delta_tables.newest_version(table) is None:
        return None
    where = (pc.field("model_name") == registry.name) & (pc.field("version_id") != "")
    rows = delta_tables.read(table, [*NUMBER_AND_ID], where).group_by([*NUMBER_AND_ID]).aggregate([]).to_pylist()
    recorded = {row["version_id"]: row["model_version"] for row in rows}
    used = [version for version in versions if {version.stage, *version.aliases} & IN_USE]
    reused = {
        of.version for of in used for id_, number in recorded.items() if number == of.version and id_ != of.version_id
    }
    unknown = not any(version.version_id in recorded for version in versions)
    if recorded and unknown:
        numbers = ", ".join(map(str, sorted(set(recorded.values()))))
        found = f"has none of the versions of {registry.name} that rows of {table.name} belong to (version {numbers})"
    elif reused:
        numbers = ", ".join(map(str, sorted(reused)))
        found = (
            f"has a different version {numbers} of {registry.name} from the one that earlier rows of {table.name} "
            "belong to"
        )
    else:
        return None
    return (
        f"The registry {registry.address} {found}: is MLFLOW_TRACKING_URI right, or was the registry replaced? "
        "Rows of the former version are kept, and the new version gets its own."
    )
