"""Unneeded files are removed; training data of live versions and rows that followers have not read yet stay."""

import json
import socket
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake
from mlflow import MlflowClient
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.data.image_files import Decision, merge_decisions
from image_assets.data.inspection import MISSING
from image_assets.jobs.vacuum_tables import (
    FOLLOWERS,
    VacuumConfig,
    VersionsAtRisk,
    vacuum,
    vacuum_tables,
    vacuumed_markdown,
)
from image_assets.models.version_ids import key_of
from image_assets.schemas import (
    FEATURED_IMAGES,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    MODEL_EVALUATIONS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.delta_log import UPSTREAM, why_unreadable
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import added_files, follow, followed_version
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, file_sizes, write_files
from resources.delta.table import Table, file_layout
from resources.delta.writing import write_by_dataframe
from resources.mlflow.model_registry import ModelRegistry, RegistryUnavailable

pytestmark = pytest.mark.spark

INPUTS = (RAW_IMAGES, FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_FILES)
NOW = VacuumConfig(dry_run=False, retention_hours=0)


def client(registry: ModelRegistry) -> MlflowClient:
    return MlflowClient(registry.tracking_uri, registry.tracking_uri)


def register(registry: ModelRegistry, tags: dict[str, str]) -> None:
    client(registry).create_model_version(registry.name, "file:///nowhere", tags=tags)


def register_trained(registry: ModelRegistry, delta_tables: DeltaTables) -> dict[str, int]:
    """Registers a version trained on the tables as they are; returns their Delta versions."""
    at = {table.name: delta_tables.version(table) for table in INPUTS}
    register(registry, {"table_versions": json.dumps(at)})
    return at


def rewrite(delta_tables: DeltaTables, table: Table) -> None:
    """Writes the same rows to new files."""
    rows = delta_tables.read(table, table.columns.fieldNames())
    write_deltalake(delta_tables.uri(table), rows, mode="overwrite")


def files(delta_tables: DeltaTables) -> dict[str, set[str]]:
    return {
        table.name: {name for name in file_sizes(delta_tables.uri(table)) if name.endswith(".parquet")}
        for table in INPUTS
    }


def run(delta_tables: DeltaTables, registry: ModelRegistry, **config: object) -> dict[str, dict[str, object]]:
    """The rows of the last op's report, by table."""
    result = vacuum_tables.execute_in_process(
        run_config=config,
        resources={"delta_tables": delta_tables, "model_registry": registry},
        instance=dg.DagsterInstance.ephemeral(),
    )
    events = [event for event in result.all_events if event.is_successful_output]
    last = next(event for event in events if event.step_key == "report_vacuumed")
    table = last.step_output_data.metadata["vacuumed"]
    assert isinstance(table, dg.TableMetadataValue)
    return {str(record.data["table"]): dict(record.data) for record in table.records}


def test_training_data_stays_until_the_model_version_is_archived(
    ingested_tables: DeltaTables, registry: ModelRegistry
) -> None:
    trained_at = register_trained(registry, ingested_tables)
    at_training = files(ingested_tables)
    keys = {table: ingested_tables.read_keys(table) for table in INPUTS}
    for table in INPUTS:
        rewrite(ingested_tables, table)
    in_between = files(ingested_tables)
    for table in (IMAGE_SPLITS, IMAGE_FILES):  # the other tables have rows that their followers have not processed yet
        rewrite(ingested_tables, table)
    everything = files(ingested_tables)

    assert all(row["files"] == 0 for row in run(ingested_tables, registry).values()), (
        "the retention period has not passed"
    )
    dry = run(ingested_tables, registry, retention_hours=0)
    assert dry["image_splits"]["done"] == "would be removed"
    assert dry["image_splits"]["kept_for_models"] == f"{trained_at['image_splits']} (model version 1)"
    assert dry["model_evaluations"]["done"] == "empty", "the job does not create the table"
    assert files(ingested_tables) == everything
    assert not DeltaTable.is_deltatable(ingested_tables.uri(MODEL_EVALUATIONS))

    before = {table: ingested_tables.last_change(table) for table in INPUTS}
    done = run(ingested_tables, registry, dry_run=False, retention_hours=0)
    gone = {name: names - files(ingested_tables)[name] for name, names in everything.items()}
    rewritten_twice = (IMAGE_SPLITS.name, IMAGE_FILES.name)
    assert gone == {
        name: in_between[name] - at_training[name] if name in rewritten_twice else set() for name in everything
    }
    assert all(gone[name] for name in rewritten_twice)
    assert {name: done[name]["files"] for name in gone} == {name: len(names) for name, names in gone.items()}
    assert {name: done[name]["bytes"] for name in gone} == {name: dry[name]["bytes"] for name in gone}
    assert {table: ingested_tables.last_change(table) for table in INPUTS} == before, "no row has changed"
    pinned = ingested_tables.as_of(trained_at)
    for table, of_then in keys.items():
        assert {tuple(row) for row in pinned.dataframe(table).select(*table.keys).collect()} == of_then, "by Spark"
        assert pinned.read_keys(table) == of_then, "by delta-rs"
    version = ingested_tables.version(IMAGE_SPLITS)
    assert run(ingested_tables, registry, dry_run=False, retention_hours=0)["image_splits"]["files"] == 0
    assert ingested_tables.version(IMAGE_SPLITS) == version, "nothing to remove, no commit"

    registry.promote(1, "Archived")
    run(ingested_tables, registry, dry_run=False, retention_hours=0, tables=["image_splits"])
    for table, lost in ((IMAGE_SPLITS, True), (FEATURED_IMAGES, False)):
        assert bool(why_unreadable(ingested_tables.uri(table), trained_at[table.name])) == lost
        assert ingested_tables.read_keys(table) == keys[table]


def test_an_archived_version_that_an_alias_names_is_live(ingested_tables: DeltaTables, registry: ModelRegistry) -> None:
    trained_at = register_trained(registry, ingested_tables)
    registry.promote(1, "Archived")
    client(registry).set_registered_model_alias(registry.name, "published", "1")
    rewrite(ingested_tables, IMAGE_SPLITS)
    vacuum(ingested_tables, registry, IMAGE_SPLITS, NOW)
    assert why_unreadable(ingested_tables.uri(IMAGE_SPLITS), trained_at["image_splits"]) == ""


@pytest.mark.parametrize("table_versions", [None, "", "version 12", "[1, 2]", '{"image_splits": "12"}'])
def test_nothing_is_removed_if_the_training_data_of_a_version_is_unknown(
    ingested_tables: DeltaTables, registry: ModelRegistry, table_versions: str | None
) -> None:
    register_trained(registry, ingested_tables)
    register(registry, {} if table_versions is None else {"table_versions": table_versions})
    rewrite(ingested_tables, IMAGE_SPLITS)
    before = files(ingested_tables)
    with pytest.raises(VersionsAtRisk, match=r"Nothing was removed:\nmodels:/image_classifier/2: .*\nArchive"):
        vacuum(ingested_tables, registry, IMAGE_SPLITS, NOW)
    assert files(ingested_tables) == before
    client(registry).delete_model_version(registry.name, "2")
    assert vacuum(ingested_tables, registry, RAW_IMAGES, NOW).done == "nothing to remove"


def test_nothing_is_removed_from_any_table_if_training_data_is_already_lost(
    ingested_tables: DeltaTables, registry: ModelRegistry
) -> None:
    at = register_trained(registry, ingested_tables)
    register_trained(registry, ingested_tables)
    for table in (IMAGE_SPLITS, RAW_IMAGES):
        rewrite(ingested_tables, table)
    rewrite(ingested_tables, RAW_IMAGES)
    DeltaTable(ingested_tables.uri(IMAGE_SPLITS)).vacuum(0, dry_run=False, enforce_retention_duration=False)
    before = files(ingested_tables)
    lost = f"model versions 1, 2: image_splits .*{at['image_splits']}"
    with pytest.raises(VersionsAtRisk, match=lost):
        run(ingested_tables, registry, dry_run=False, retention_hours=0)
    assert files(ingested_tables) == before


def test_nothing_is_removed_while_the_registry_is_unavailable(ingested_tables: DeltaTables) -> None:
    rewrite(ingested_tables, IMAGE_SPLITS)
    before = files(ingested_tables)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        silent = ModelRegistry(tracking_uri=f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(RegistryUnavailable):
        vacuum(ingested_tables, silent, IMAGE_SPLITS, NOW)
    assert files(ingested_tables) == before


def add_images(delta_tables: DeltaTables, table: Table, number: int) -> None:
    """Adds a copy of an image under another path, in its own file and table version."""
    row = {**delta_tables.read(table, table.columns.fieldNames()).to_pylist()[0], "path": f"file:/new {number}"}
    delta_tables.append_files(table, list(write_files([row], delta_tables.uri(table), file_layout(table))))


def test_rows_that_a_follower_has_not_processed_yet_stay(ingested_tables: DeltaTables, registry: ModelRegistry) -> None:
    position = followed_version(ingested_tables, RAW_IMAGES, FEATURED_IMAGES)
    assert position is not None
    for number in range(2):
        add_images(ingested_tables, RAW_IMAGES, number)
    DeltaTable(ingested_tables.uri(RAW_IMAGES)).optimize.compact()
    vacuum(ingested_tables, registry, RAW_IMAGES, NOW)
    assert added_files(ingested_tables, RAW_IMAGES, position) is not None
    ingested_tables.append_files(FEATURED_IMAGES, [], follows=(RAW_IMAGES, ingested_tables.version(RAW_IMAGES)))
    merge_decisions(ingested_tables, [Decision("file:/new 0", MISSING)], ingested_tables.version(RAW_IMAGES))
    assert vacuum(ingested_tables, registry, RAW_IMAGES, NOW).done == "removed", "all followers have processed the rows"
    assert added_files(ingested_tables, RAW_IMAGES, position) is None


def test_images_that_a_live_version_has_not_predicted_yet_stay(
    ingested_tables: DeltaTables, registry: ModelRegistry
) -> None:
    register_trained(registry, ingested_tables)
    nothing = {field.name: F.lit(None).cast(field.dataType) for field in IMAGE_PREDICTIONS.columns}

    keys = StructType([FEATURED_IMAGES.columns[name] for name in ("path", "image_id")])
    part = key_of(registry.version(1))

    def with_nothing(images: DataFrame) -> DataFrame:
        return images.withColumns(
            {**nothing, **{name: F.col(name) for name in keys.names}, **{name: F.lit(part[name]) for name in part}}
        )

    def files_of(new: NewRows) -> list[WrittenFile]:
        return write_by_dataframe(ingested_tables, new, keys, IMAGE_PREDICTIONS, by=with_nothing, doing="predicted")

    def predict() -> int:
        return follow(ingested_tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, by=files_of, part=part).rows_added

    assert predict() == 16
    position = followed_version(ingested_tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, part)
    assert position is not None
    for number in range(2):
        add_images(ingested_tables, FEATURED_IMAGES, number)
    for follower in FOLLOWERS[FEATURED_IMAGES]:
        ingested_tables.append_files(follower, [], follows=(FEATURED_IMAGES, ingested_tables.version(FEATURED_IMAGES)))
    DeltaTable(ingested_tables.uri(FEATURED_IMAGES)).optimize.compact()
    vacuum(ingested_tables, registry, FEATURED_IMAGES, NOW)
    assert added_files(ingested_tables, FEATURED_IMAGES, position) is not None
    registry.promote(1, "Archived")
    vacuum(ingested_tables, registry, FEATURED_IMAGES, NOW)
    assert added_files(ingested_tables, FEATURED_IMAGES, position) is None
    assert predict() == 2, "it starts over, and skips the images that it has predicted"


def test_followers_lists_every_table_that_follows_another(ingested_tables: DeltaTables) -> None:
    by_name = {table.name: table for table in TABLES}
    for into in INPUTS:
        for commit in ingested_tables.history(into):
            if UPSTREAM in commit:
                assert into in FOLLOWERS[by_name[commit[UPSTREAM]]]


def test_files_of_killed_runs_are_removed_after_the_retention_period(
    ingested_tables: DeltaTables, registry: ModelRegistry
) -> None:
    left = Path(ingested_tables.uri(RAW_IMAGES), "left.parquet")
    left.write_bytes(b"cut off")
    assert vacuum(ingested_tables, registry, RAW_IMAGES, VacuumConfig(dry_run=False)).files == 0
    row = vacuum(ingested_tables, registry, RAW_IMAGES, NOW)
    assert (row.done, row.files, row.bytes, left.exists()) == ("removed", 1, 7, False)
    assert "| raw_images | removed | 1 | 7 |  |" in vacuumed_markdown([row])


def test_a_retention_longer_than_the_log_records_removals_is_an_error() -> None:
    with pytest.raises(ValueError, match="less than or equal to 168"):
        VacuumConfig(retention_hours=1000)
