"""Vacuum: reports, or removes, files that no table needs any more.

Files that live model versions were trained on stay, and so do those that following tables have not read yet.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

import dagster as dg
from deltalake import DeltaTable
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.jobs.optimize_tables import for_every_op, pool, records
from image_assets.models.image_embeddings import BACKBONES, FAULT
from image_assets.models.lineage import EMBEDDING_BACKBONE, table_versions, unreadable_versions
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.version_ids import key_of
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.delta_log import last_metadata, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import followed_version, forget_position, versions_with_new_rows
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import file_sizes, write_files
from resources.delta.table import Table, file_layout
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from resources.pictures import FOLDER, linked

MAX_RETENTION_HOURS = 168  # Delta logs record for this long when a file was removed from its table
# The tables that follow another as a whole. Each model version in image_predictions, and each backbone in
# image_embeddings, follows by itself.
FOLLOWERS = {RAW_IMAGES: (IMAGE_FILES, FEATURED_IMAGES), FEATURED_IMAGES: (GRAYSCALE_IMAGES, IMAGE_SPLITS)}
# Model versions by the table's name and Delta version that they were trained on.
ModelsByTableVersion = dict[tuple[str, int], list[int]]


def removable_files(uri: str, versions_to_keep: Iterable[int], retention_hours: int) -> dict[str, int]:
    """Names and bytes of files removed from the table, or left by killed writers, longer ago than the retention."""
    names = {PurePosixPath(file).name for file in _vacuum(uri, versions_to_keep, retention_hours, dry_run=True)}
    return {name: size for name, size in file_sizes(uri).items() if name in names}  # a vacuum may list removed files


def remove_files(uri: str, versions_to_keep: Iterable[int], retention_hours: int) -> None:
    """Removes these files, which the table's log records."""
    _vacuum(uri, versions_to_keep, retention_hours, dry_run=False)


def _vacuum(uri: str, versions_to_keep: Iterable[int], retention_hours: int, *, dry_run: bool) -> list[str]:
    return DeltaTable(uri).vacuum(
        retention_hours, dry_run, enforce_retention_duration=False, full=True, keep_versions=sorted(versions_to_keep)
    )


class VersionsAtRisk(RuntimeError):
    """The data of some model versions is unknown or already lost."""


class VacuumConfig(dg.Config):
    """What to vacuum, and how long removed files stay."""

    tables: list[str] = Field(default=[table.name for table in TABLES], description="Names of the tables to vacuum.")
    pictures: bool = Field(default=True, description="Whether to remove pictures of earlier materializations, too.")
    dry_run: bool = Field(default=True, description="Only report what would be removed.")
    retention_hours: int = Field(
        default=MAX_RETENTION_HOURS,
        ge=0,
        le=MAX_RETENTION_HOURS,
        description="Hours that files stay after their removal from the table. Choose more than any reader or training "
        "takes.",
    )


@dataclass(frozen=True)
class Vacuumed:
    """The result for one table: a row of the report."""

    table: str
    done: str
    files: int
    bytes: int
    kept_for_models: str


def trained_on(versions: Sequence[ModelVersion]) -> ModelsByTableVersion:
    """What the live versions were trained on; a VersionsAtRisk error names those whose tags do not say."""
    trained, unclear = defaultdict(list), []
    for version in versions:
        if version.live:
            try:
                for at in table_versions(version).items():
                    trained[at].append(version.version)
            except ValueError as error:
                unclear.append(str(error))
    _require_none(unclear)
    return dict(trained)


def require_readable(delta_tables: DeltaTables, trained: ModelsByTableVersion) -> None:
    """Raises VersionsAtRisk with the model versions whose training data can no longer be read."""
    _require_none(
        [f"{name_versions(trained[at])}: {why}" for at, why in unreadable_versions(delta_tables, trained).items()]
    )


def versions_to_follow(delta_tables: DeltaTables, table: Table, live: Iterable[ModelVersion]) -> set[int]:
    """The table's versions whose rows its followers have not processed yet.

    A follower whose versions are gone loses no rows, but has to compare the whole table with its own.
    """
    needed = set()
    followers = [into for into in FOLLOWERS.get(table, ()) if table_files(delta_tables.uri(into)).files]
    for into in followers:
        position = followed_version(delta_tables, table, into) or delta_tables.transaction(into, table.name)
        needed.update(versions_with_new_rows(delta_tables, table, position or 0) or ())
    parts: list[tuple[Table, Mapping[str, object]]] = []
    if table == FEATURED_IMAGES:
        parts += [(IMAGE_PREDICTIONS, key_of(version)) for version in live]
        parts += [(IMAGE_EMBEDDINGS, {"backbone": backbone}) for backbone in followed_backbones(delta_tables)]
    for into, part in parts:
        position = followed_version(delta_tables, table, into, part)
        if position is not None:
            needed.update(versions_with_new_rows(delta_tables, table, position) or ())
    return needed


def vacuum(delta_tables: DeltaTables, registry: ModelRegistry, table: Table, config: VacuumConfig) -> Vacuumed:
    """Removes the table's unneeded files, or with `dry_run` only counts them.

    Raises:
        VersionsAtRisk: The training data of some model versions is unknown; nothing was removed.
    """
    versions = registry.versions()
    trained = trained_on(versions)
    uri = delta_tables.uri(table)
    if not table_files(uri).files:
        return Vacuumed(table.name, "empty", 0, 0, "")
    needed_by_models = {at: models for (name, at), models in sorted(trained.items()) if name == table.name}
    versions_to_keep = needed_by_models.keys() | versions_to_follow(
        delta_tables, table, [version for version in versions if version.live]
    )
    files = removable_files(uri, versions_to_keep, config.retention_hours)
    if files and not config.dry_run:
        remove_files(uri, versions_to_keep, config.retention_hours)
    return Vacuumed(
        table=table.name,
        done="nothing to remove" if not files else "would be removed" if config.dry_run else "removed",
        files=len(files),
        bytes=sum(files.values()),
        kept_for_models=", ".join(f"{at} ({name_versions(models)})" for at, models in needed_by_models.items()),
    )


def stored_backbones(delta_tables: DeltaTables) -> list[str]:
    """The backbones that image_embeddings has rows of."""
    return sorted(delta_tables.read(IMAGE_EMBEDDINGS, ["backbone"])["backbone"].unique().to_pylist())


def last_embedded(delta_tables: DeltaTables) -> Mapping[str, object]:
    """The metadata of the last run of image_embeddings; empty if it is not known."""
    execution = delta_tables.execution
    return last_metadata(execution.instance, IMAGE_EMBEDDINGS.name) if execution else {}


def backbones_in(last: Mapping[str, object]) -> set[str]:
    """The backbones that a run of image_embeddings used, from its metadata."""
    return {*str(last[BACKBONES]).split(", ")}


def followed_backbones(delta_tables: DeltaTables) -> list[str]:
    """Those of the stored backbones that the last run of image_embeddings used; all of them if that is not known."""
    last, stored = last_embedded(delta_tables), stored_backbones(delta_tables)
    return sorted({*stored} & backbones_in(last)) if BACKBONES in last else stored


def delete_unused_embeddings(
    delta_tables: DeltaTables, registry: ModelRegistry, config: VacuumConfig
) -> list[Vacuumed]:
    """Deletes rows of backbones that neither the last run of image_embeddings nor a live model version used.

    Their files are removed like others, after the retention. Nothing is deleted if the last run is not known, or could
    not export a backbone.
    """
    last = last_embedded(delta_tables)
    if BACKBONES not in last or any(name.endswith(FAULT) for name in last):
        return []
    used = backbones_in(last) | {
        version.tags.get(EMBEDDING_BACKBONE, "") for version in registry.versions() if version.live
    }
    stored = stored_backbones(delta_tables)
    unused = [backbone for backbone in stored if backbone not in used]
    if unused and not config.dry_run:
        for backbone in unused:  # first: a run that is killed in between compares keys once more, and loses none
            forget_position(delta_tables, FEATURED_IMAGES, IMAGE_EMBEDDINGS, {"backbone": backbone})
        keep_embeddings(delta_tables, set(stored) - set(unused))
    done = "rows would be deleted" if config.dry_run else "rows deleted"
    return [Vacuumed(f"{IMAGE_EMBEDDINGS.name}: {backbone}", done, 0, 0, "") for backbone in unused]


def keep_embeddings(delta_tables: DeltaTables, backbones: set[str]) -> None:
    """Replaces the rows of image_embeddings with those of some backbones, in one commit."""
    wanted = frozenset((backbone,) for backbone in backbones)
    stored = NewRows(embedding_files(delta_tables), None, ("backbone",), wanted=wanted)
    rows = stored.rows(IMAGE_EMBEDDINGS.columns.fieldNames(), 0, 1)
    files = list(write_files(rows, delta_tables.uri(IMAGE_EMBEDDINGS), file_layout(IMAGE_EMBEDDINGS)))
    delta_tables.commit(IMAGE_EMBEDDINGS, files, {}, mode="overwrite")


def name_versions(models: Sequence[int]) -> str:
    """The model versions as text."""
    return f"model version{'s' if len(models) > 1 else ''} {', '.join(map(str, models))}"


def vacuumed_markdown(rows: Sequence[Vacuumed]) -> str:
    """The rows as a Markdown table."""
    lines = ["| table | | files | bytes | Delta versions kept |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, astuple(row))) + " |" for row in rows)])


@dg.op(description="Check that the training data of live model versions can still be read.")
def check_training_data(config: VacuumConfig, delta_tables: DeltaTables, model_registry: ModelRegistry) -> None:
    """Once for all tables: if data is lost in one of them, nothing is removed from any."""
    if config.tables:
        require_readable(delta_tables, trained_on(model_registry.versions()))


def vacuum_op(table: Table) -> dg.OpDefinition:
    """The op that vacuums one table; it holds the table's pool, so nothing else writes to the table meanwhile."""

    @dg.op(
        name=f"vacuum_{table.name}",
        ins={"checked": dg.In(dg.Nothing)},
        description=f"Remove files that {table.name} no longer needs.",
        pool=pool(table),
    )
    def op(config: VacuumConfig, delta_tables: DeltaTables, model_registry: ModelRegistry) -> list[Vacuumed]:
        if table.name not in config.tables:
            return []
        unused = delete_unused_embeddings(delta_tables, model_registry, config) if table == IMAGE_EMBEDDINGS else []
        return [*unused, vacuum(delta_tables, model_registry, table, config)]

    return op


def vacuum_pictures(home: Path, instance: dg.DagsterInstance, config: VacuumConfig) -> Vacuumed:
    """Removes the pictures that no asset's last materialization shows, once they are older than the retention."""
    shown = shown_pictures(instance)
    oldest = time.time() - config.retention_hours * 3600
    found = {file: file.stat() for file in (home / FOLDER).glob("*") if file.name not in shown}
    files = {file: status.st_size for file, status in found.items() if status.st_mtime < oldest}
    for file in files if not config.dry_run else ():
        file.unlink(missing_ok=True)
    done = "nothing to remove" if not files else "would be removed" if config.dry_run else "removed"
    return Vacuumed(FOLDER, done, len(files), sum(files.values()), "")


def shown_pictures(instance: dg.DagsterInstance) -> set[str]:
    """The names of the picture files that the last materialization of any asset shows."""
    events = instance.get_latest_materialization_events(instance.get_asset_keys()).values()
    made = [event.asset_materialization for event in events if event]
    return {name for each in made if each for name in linked(each.metadata)}


@dg.op(name=f"vacuum_{FOLDER}", description="Remove pictures of earlier materializations.")
def vacuum_pictures_op(config: VacuumConfig, delta_tables: DeltaTables) -> list[Vacuumed]:
    """Vacuums the home's pictures; none if Dagster's database is elsewhere, and holds the pictures itself."""
    execution = delta_tables.execution
    if execution is None or execution.picture_home is None:
        return []
    return [vacuum_pictures(execution.picture_home, execution.instance, config)] if config.pictures else []


@dg.op
def report_vacuumed(context: dg.OpExecutionContext, vacuumed: list[list[Vacuumed]]) -> None:
    """The results of all tables in one table."""
    rows = [row for of_table in vacuumed for row in of_table]
    report = dg.MetadataValue.md(vacuumed_markdown(rows))
    context.add_output_metadata({"vacuumed": records(rows, Vacuumed), "report": report})


@dg.config_mapping
def every_op(config: VacuumConfig) -> dg.RunConfig:
    """The same config for every op."""
    ops = for_every_op("vacuum", config).ops
    return dg.RunConfig(ops={**ops, f"vacuum_{FOLDER}": config, check_training_data.name: config})


OPS = [vacuum_op(table) for table in TABLES]


@dg.job(
    config=every_op,
    description=with_example(
        "vacuum_tables",
        "Remove files that no table needs any more, or report them; training data of live model versions stays.",
    ),
)
def vacuum_tables() -> None:
    """Vacuums every table, then reports."""
    checked = check_training_data()
    report_vacuumed([*(op(checked) for op in OPS), vacuum_pictures_op()])


def _require_none(reasons: Sequence[str]) -> None:
    if reasons:
        message = ["Nothing was removed:", *reasons, "Archive or delete these model versions, or repair their tables."]
        raise VersionsAtRisk("\n".join(message))
