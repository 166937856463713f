"""Shows pictures, figures and check results again while nothing that they are made from has changed.

A materialization and a check result record a digest of their inputs: the newest commits of the tables, other values,
this project's code, and the day (UTC). If the digest of the last one is the same, its metadata is shown again. So the
first run of each day computes everything again, and so do runs with the tag RECOMPUTE and runs of checks alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path

import dagster as dg

from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.pictures import has_pictures, with_picture_files

RECOMPUTE = "image_assets/recompute"  # a tag of runs that show nothing again
INPUTS, DIGEST, SHOWN = "inputs", "digest", "shown"  # in metadata
READS = "reads"  # in the metadata of a check: the tables that its result depends on

Evaluate = Callable[..., dg.AssetCheckResult]


@cache
def code_digest() -> str:
    """A digest of this project's code: a changed function may give other results."""
    root = Path(__file__).parents[2]
    digest = sha256()
    for file in sorted(file for folder in ("image_assets", "resources") for file in (root / folder).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def inputs_digest(delta_tables: DeltaTables, tables: Sequence[Table], values: Sequence[object] = ()) -> str:
    """A digest that changes with any commit to the tables, the values, the code, and the day."""
    commits = {table.name: delta_tables.newest_commit_id(table) for table in tables}
    inputs = [commits, [*values], code_digest(), str(datetime.now(UTC).date())]
    return sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def shows_again(run: dg.DagsterRun) -> bool:
    """Whether the run may show earlier results: it materializes assets, and nobody asked to compute everything."""
    only_checks = bool(run.asset_check_selection) and not run.asset_selection
    return RECOMPUTE not in run.tags and not only_checks


def describe_once(
    delta_tables: DeltaTables,
    asset: str,
    describe: Callable[[], Mapping[str, dg.MetadataValue]],
    *,
    tables: Sequence[Table],
    values: Sequence[object] = (),
) -> dict[str, dg.MetadataValue]:
    """An asset's pictures and figures; those of its last materialization if it had the same inputs.

    Args:
        delta_tables: The tables.
        asset: The name of the asset.
        describe: Computes the metadata.
        tables: All tables that it reads.
        values: Everything else that it depends on, such as settings and model versions, as plain values.

    Returns:
        The metadata, and the digest of the inputs. Pictures are files of the home if Dagster's database is in it.
    """
    execution = delta_tables.execution
    if execution is None:
        return {**describe()}
    digest = inputs_digest(delta_tables, tables, values)
    if not shows_again(execution.run) or (shown := _shown_before(delta_tables, asset, digest)) is None:
        shown = with_picture_files(describe(), execution.picture_home)
    return {**shown, INPUTS: dg.MetadataValue.json({DIGEST: digest, SHOWN: sorted(shown)})}


def _shown_before(delta_tables: DeltaTables, asset: str, digest: str) -> dict[str, dg.MetadataValue] | None:
    """The described part of the last materialization's metadata; None if it had other inputs, or lost a picture."""
    execution = delta_tables.execution
    event = execution.instance.get_latest_materialization_event(dg.AssetKey(asset)) if execution else None
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    recorded = metadata.get(INPUTS)
    if execution is None or not isinstance(recorded, dg.JsonMetadataValue) or not isinstance(recorded.data, dict):
        return None
    names = recorded.data.get(SHOWN, [])
    if recorded.data.get(DIGEST) != digest or not metadata.keys() >= set(names):
        return None
    shown = {name: metadata[name] for name in names}
    return shown if has_pictures(shown, execution.picture_home) else None


def table_check(
    *, asset: str, reads: Sequence[Table], description: str, name: str = "", blocking: bool = False
) -> Callable[[Evaluate], dg.AssetChecksDefinition]:
    """An asset check whose result depends on tables only; one that passed is shown again while they do not change.

    Args:
        asset: The checked asset.
        reads: All tables that the check reads.
        description: What the check tests, and what to do if it fails.
        name: The name of the check; by default that of the function.
        blocking: Whether a failure keeps downstream assets from being materialized.
    """

    def decorate(evaluate: Evaluate) -> dg.AssetChecksDefinition:
        key = dg.AssetCheckKey(dg.AssetKey(asset), name or evaluate.__name__)

        @wraps(evaluate)
        def check(delta_tables: DeltaTables) -> dg.AssetCheckResult:
            if delta_tables.execution is None:
                return evaluate(delta_tables)
            digest = inputs_digest(delta_tables, reads)
            if passed := _passed_before(delta_tables, key, digest):
                return passed
            result = evaluate(delta_tables)
            return dg.AssetCheckResult(
                passed=result.passed,
                severity=result.severity,
                description=result.description,
                metadata={**result.metadata, INPUTS: digest},
            )

        names = ", ".join(table.name for table in reads)
        return dg.asset_check(
            asset=asset, name=key.name, description=description, blocking=blocking, metadata={READS: names}
        )(check)

    return decorate


def has_passed(delta_tables: DeltaTables, asset: str, name: str, reads: Sequence[Table]) -> bool:
    """Whether a `table_check` has passed on what the tables are now, in this run or an earlier one."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    return _passed_before(delta_tables, key, inputs_digest(delta_tables, reads)) is not None


def _passed_before(delta_tables: DeltaTables, key: dg.AssetCheckKey, digest: str) -> dg.AssetCheckResult | None:
    """The result of the last evaluation; None if it failed, was cut short, or had other inputs."""
    execution = delta_tables.execution
    if execution is None or not shows_again(execution.run):
        return None
    # The newest record may be that of this run, which may have no evaluation yet.
    records = execution.instance.event_log_storage.get_asset_check_execution_history(key, limit=2)
    evaluations = [(record.run_id, record.event and record.event.asset_check_evaluation) for record in records]
    last = next((found for run_id, found in evaluations if found or run_id != execution.run.run_id), None)
    if last is None or not last.passed or last.metadata.get(INPUTS) != dg.MetadataValue.text(digest):
        return None
    return dg.AssetCheckResult(
        passed=True, severity=last.severity, description=last.description, metadata=last.metadata
    )
