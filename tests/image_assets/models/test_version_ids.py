"""Rows belong to a version, not to a number that another registry gives to another version."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from image_assets.models.version_ids import WRITTEN_AT, identify_rows, key_of, of_versions, registry_warning
from image_assets.schemas import IMAGE_PREDICTIONS, STAGE_HISTORY, TABLES, VERSION_AGREEMENTS
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from tests.gallery.small_home import append
from tests.support.tables import tables_at

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
REGISTRY = ModelRegistry(tracking_uri="http://registry.example:5000")


def version(number: int, run_id: str = "", *, hours: float = 0, stage: str = "Production") -> ModelVersion:
    """A version that was registered so many hours after noon."""
    created_at = NOON + timedelta(hours=hours)
    return ModelVersion(number, stage, (), run_id or f"run {number}", "", {}, created_at=created_at)


def add(tables: DeltaTables, table: Table, number: int, *, hours: float = 1, version_id: str = "", **more: Any) -> None:
    """A row that was written so many hours after noon."""
    key = {"model_name": "image_classifier", "model_version": number, "version_id": version_id}
    append(tables, table, [{**key, WRITTEN_AT[table]: NOON + timedelta(hours=hours), **more}])


def ids(tables: DeltaTables, table: Table, column: str = "version_id") -> list[tuple[int, str]]:
    rows = tables.read(table, ["model_version", column]).to_pylist()
    return sorted((row["model_version"], row[column]) for row in rows)


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def test_a_version_is_its_files_or_else_its_run_or_else_the_time_it_was_registered() -> None:
    of_run = version(1, "a run")
    assert replace(of_run, tags={FILES_DIGEST: "a digest"}).version_id == "a digest"
    assert of_run.version_id == "a run"
    assert replace(of_run, mlflow_run_id="").version_id == NOON.isoformat()


def test_every_table_with_rows_per_version_has_its_id_among_the_keys() -> None:
    named = [table for table in TABLES if "model_version" in table.columns.names]
    assert set(named) == set(WRITTEN_AT)
    keyed = [table for table in named if "model_version" in table.keys]
    assert [table for table in keyed if "version_id" not in table.keys] == []


@pytest.mark.parametrize("table", WRITTEN_AT, ids=lambda table: table.name)
def test_rows_of_earlier_releases_get_the_id_of_the_version_that_wrote_them(tables: DeltaTables, table: Table) -> None:
    for number, hours, version_id in ((1, 2, ""), (1, -2, ""), (2, 1, ""), (3, 1, "another"), (4, 1, "")):
        add(tables, table, number, hours=hours, version_id=version_id)
    versions = [version(1), version(2), version(3)]
    before = tables.snapshot(table).version
    identify_rows(tables, versions, table)
    assert ids(tables, table) == [(1, ""), (1, "run 1"), (2, "run 2"), (3, "another"), (4, "")]
    assert tables.snapshot(table).version == before + 1
    identify_rows(tables, versions, table)
    identify_rows(tables, [], table)
    assert tables.snapshot(table).version == before + 1, "once"


def test_both_versions_of_an_agreement_are_identified(tables: DeltaTables) -> None:
    add(tables, VERSION_AGREEMENTS, 2, compared_with=1, compared_with_id="")
    identify_rows(tables, [version(1), version(2)], VERSION_AGREEMENTS)
    assert ids(tables, VERSION_AGREEMENTS) == [(2, "run 2")]
    assert ids(tables, VERSION_AGREEMENTS, "compared_with_id") == [(2, "run 1")]


def test_rows_are_selected_by_what_the_version_is(tables: DeltaTables) -> None:
    for version_id in ("run 1", "of another registry", ""):
        add(tables, IMAGE_PREDICTIONS, 1, version_id=version_id)
    found = tables.read(IMAGE_PREDICTIONS, [*key_of(version(1))], of_versions([version(1), version(2)])).to_pylist()
    assert found == [key_of(version(1))]
    assert tables.read(IMAGE_PREDICTIONS, ["path"], of_versions([])).num_rows == 0


@pytest.mark.parametrize("table", [IMAGE_PREDICTIONS, STAGE_HISTORY], ids=lambda table: table.name)
@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([], "has none of the versions of image_classifier .* (version 1, 2)"),
        ([version(7)], "has none of the versions"),
        ([version(1, "another"), version(2)], "has a different version 1 of image_classifier from the one"),
        ([version(1, "another", stage="Archived"), version(2)], None),
        ([version(1)], None),
        ([version(1), version(2), version(3)], None),
    ],
)
def test_another_registry_is_noticed(
    tables: DeltaTables, table: Table, versions: list[ModelVersion], expected: str | None
) -> None:
    assert registry_warning(tables, table, versions, REGISTRY) is None, "there are no rows"
    for number in (1, 2):
        add(tables, table, number, version_id=f"run {number}")
    warning = registry_warning(tables, table, versions, REGISTRY)
    if expected is None:
        assert warning is None
    else:
        assert warning
        assert expected.partition(" .* ")[0] in warning
        assert "registry.example:5000" in warning
        assert "is MLFLOW_TRACKING_URI right" in warning
