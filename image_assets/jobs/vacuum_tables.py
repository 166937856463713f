"""Files that nobody needs any longer, removed: what live model versions were trained on stays."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import PurePosixPath

import dagster as dg
from deltalake import DeltaTable
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.jobs.optimize_tables import for_every_op, pool, records
from image_assets.models.lineage import table_versions, unreadable_versions
from image_assets.predictions.image_predictions import key_of
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables, checkpoint_of
from resources.delta.parquet_files import file_sizes
from resources.delta.table import Table
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

REMEMBERED_HOURS = 168  # for so long a Delta log says when a file left its table


def removable_files(uri: str, versions_to_keep: Iterable[int], retention_hours: int) -> dict[str, int]:
    """Their names and sizes in bytes: files that left the table, or were written, longer ago than the retention."""
    names = {PurePosixPath(file).name for file in _vacuum(uri, versions_to_keep, retention_hours, dry_run=True)}
    return {name: size for name, size in file_sizes(uri).items() if name in names}  # some are removed already


def remove_files(uri: str, versions_to_keep: Iterable[int], retention_hours: int) -> None:
    """Remove them; the table's log says so."""
    _vacuum(uri, versions_to_keep, retention_hours, dry_run=False)


def _vacuum(uri: str, versions_to_keep: Iterable[int], retention_hours: int, *, dry_run: bool) -> list[str]:
    return DeltaTable(uri).vacuum(
        retention_hours, dry_run, enforce_retention_duration=False, full=True, keep_versions=sorted(versions_to_keep)
    )


# Who follows a table by its versions; image_predictions does by streams, one for each model version.
FOLLOWERS = {RAW_IMAGES: (IMAGE_FILES, FEATURED_IMAGES), FEATURED_IMAGES: (GRAYSCALE_IMAGES, IMAGE_SPLITS)}

ModelsByTableVersion = dict[
    tuple[str, int], list[int]
]  # model versions by the table and Delta version they were trained on


class VersionsAtRisk(RuntimeError):
    """It cannot be told what model versions need, or it is lost already."""


class VacuumConfig(dg.Config):
    """Which tables are looked at, and what may go."""

    tables: list[str] = Field(default=[table.name for table in TABLES], description="Names of the tables to look at.")
    dry_run: bool = Field(default=True, description="Say what would go, and remove nothing.")
    retention_hours: int = Field(
        default=REMEMBERED_HOURS,
        ge=0,
        le=REMEMBERED_HOURS,
        description="Files that left their table since then stay: longer than any reader or training takes.",
    )


@dataclass(frozen=True)
class Vacuumed:
    """What went from a table: a row of the report."""

    table: str
    done: str
    files: int
    bytes: int
    kept_for_models: str


def trained_on(versions: Sequence[ModelVersion]) -> ModelsByTableVersion:
    """What the live versions were trained on; VersionsAtRisk names those whose tags do not say it."""
    trained, unclear = defaultdict(list), []
    for version in versions:
        if version.live:
            try:
                for at in table_versions(version).items():
                    trained[at].append(version.version)
            except ValueError as error:
                unclear.append(str(error))
    _refuse(unclear)
    return dict(trained)


def require_readable(delta_tables: DeltaTables, trained: ModelsByTableVersion) -> None:
    """VersionsAtRisk names the model versions that were trained on what cannot be read any longer."""
    _refuse([f"{name_versions(trained[at])}: {why}" for at, why in unreadable_versions(delta_tables, trained).items()])


def versions_to_follow(delta_tables: DeltaTables, table: Table, live: Iterable[ModelVersion]) -> set[int]:
    """The versions that brought the rows which followers of the table have still to take in.

    A follower that finds them gone loses no row; it compares the whole table with itself.
    """
    needed = set()
    there = [into for into in FOLLOWERS.get(table, ()) if table_files(delta_tables.uri(into)).files]
    for into in there:
        position = delta_tables.followed_version(table, into) or delta_tables.transaction(into, table.name)
        needed.update(delta_tables.versions_with_new_rows(table, position or 0) or ())
    for version in live if table == FEATURED_IMAGES else ():
        stream = delta_tables.stream_position(checkpoint_of(IMAGE_PREDICTIONS, key_of(version)))
        if stream:
            needed.update(delta_tables.versions_with_new_rows(table, stream.version - 1) or ())
        if stream and stream.whole:
            needed.add(stream.version)
    return needed


def vacuum(delta_tables: DeltaTables, registry: ModelRegistry, table: Table, config: VacuumConfig) -> Vacuumed:
    """Remove what nobody needs of the table, or say what it is; nothing where a model version is at risk."""
    versions = registry.versions()
    trained = trained_on(versions)
    require_readable(delta_tables, trained)
    uri = delta_tables.uri(table)
    if not table_files(uri).files:
        return Vacuumed(table.name, "nothing there", 0, 0, "")
    needed_by_models = {at: models for (name, at), models in sorted(trained.items()) if name == table.name}
    versions_to_keep = needed_by_models.keys() | versions_to_follow(
        delta_tables, table, [version for version in versions if version.live]
    )
    files = removable_files(uri, versions_to_keep, config.retention_hours)
    if files and not config.dry_run:
        remove_files(uri, versions_to_keep, config.retention_hours)
    return Vacuumed(
        table=table.name,
        done="nothing to remove" if not files else "would go" if config.dry_run else "removed",
        files=len(files),
        bytes=sum(files.values()),
        kept_for_models=", ".join(f"{at} ({name_versions(models)})" for at, models in needed_by_models.items()),
    )


def name_versions(models: Sequence[int]) -> str:
    """Model versions, named."""
    return f"model version{'s' if len(models) > 1 else ''} {', '.join(map(str, models))}"


def vacuumed_markdown(rows: Sequence[Vacuumed]) -> str:
    """The rows as a table to read."""
    lines = ["| table | | files | bytes | Delta versions kept |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, astuple(row))) + " |" for row in rows)])


def vacuum_op(table: Table) -> dg.OpDefinition:
    """The op that vacuums one table, while nobody else writes to it."""

    @dg.op(
        name=f"vacuum_{table.name}",
        description=f"Remove files of {table.name} that nobody needs any longer.",
        pool=pool(table),
    )
    def op(config: VacuumConfig, delta_tables: DeltaTables, model_registry: ModelRegistry) -> list[Vacuumed]:
        return [vacuum(delta_tables, model_registry, table, config)] if table.name in config.tables else []

    return op


@dg.op
def report_vacuumed(context: dg.OpExecutionContext, vacuumed: list[list[Vacuumed]]) -> None:
    """What went from every table, in one table."""
    rows = [row for of_table in vacuumed for row in of_table]
    report = dg.MetadataValue.md(vacuumed_markdown(rows))
    context.add_output_metadata({"vacuumed": records(rows, Vacuumed), "report": report})


@dg.config_mapping
def every_op(config: VacuumConfig) -> dg.RunConfig:
    """The same config for the op of every table."""
    return for_every_op("vacuum", config)


OPS = [vacuum_op(table) for table in TABLES]


@dg.job(
    config=every_op,
    description=with_example(
        "vacuum_tables",
        "Say which files of the tables nobody needs any longer, or remove them; what models were trained on stays.",
    ),
)
def vacuum_tables() -> None:
    """Every table, then the report."""
    report_vacuumed([op() for op in OPS])


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        message = "\n".join(["nothing was removed:", *reasons, "archive or delete these model versions, or mend them"])
        raise VersionsAtRisk(message)
