"""Who moved which version, as the registry and the history tell together."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

from image_assets.models.promotion_gate import GateFinding
from image_assets.models.stage_history import Promotion, changes_markdown, record_changes
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry
from tests.support.registered_versions import with_three_versions
from tests.support.tables import tables_at

WHY = Promotion(
    "Production", "promote_model", "Ada", "it is better", findings=(GateFinding("files", True, "the same"),)
)


@pytest.fixture
def registry(tmp_path: Path, empty_store: Path) -> ModelRegistry:
    return with_three_versions(tmp_path, empty_store)


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def to_client(registry: ModelRegistry) -> MlflowClient:
    return MlflowClient(registry.tracking_uri, registry.tracking_uri)


def recorded(registry: ModelRegistry, tables: DeltaTables) -> list[tuple]:
    """What a look at the registry added: version, from, to, who, why."""
    return [
        (
            row["model_version"],
            row["from_stage"],
            row["to_stage"],
            row.get("person") or row["source"],
            row.get("reason"),
        )
        for row in record_changes(registry.name, registry.versions(), tables)
    ]


def test_a_registry_that_nobody_moved_has_no_history(registry: ModelRegistry, tables: DeltaTables) -> None:
    assert recorded(registry, tables) == []


def test_a_promotion_is_told_with_who_why_and_what_was_found_and_only_once(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    assert recorded(registry, tables) == [(1, "None", "Production", "Ada", "it is better")]
    assert recorded(registry, tables) == []
    (row,) = tables.read(STAGE_HISTORY, ["change", "aliases", "findings", "forced"]).to_pylist()
    findings = [{"check": "files", "passed": True, "said": "the same"}]
    assert row == {"change": 1, "aliases": ["production"], "findings": findings, "forced": False}


def test_the_version_that_was_there_is_archived_by_the_same_promotion(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    recorded(registry, tables)
    registry.promote(2, "Production", WHY.to_tags())
    assert recorded(registry, tables) == [
        (1, "Production", "Archived", "Ada", "replaced by version 2"),
        (2, "None", "Production", "Ada", "it is better"),
    ]
    registry.promote(1, "Production", WHY.to_tags())
    assert [row[:3] for row in recorded(registry, tables)] == [
        (1, "Archived", "Production"),
        (2, "Production", "Archived"),
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_was_moved_in_mlflow_is_noticed_as_such(registry: ModelRegistry, tables: DeltaTables) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    recorded(registry, tables)
    to_client(registry).transition_model_version_stage(registry.name, "2", "Production", True)
    assert recorded(registry, tables) == [
        (1, "Production", "Archived", "mlflow", None),
        (2, "None", "Production", "mlflow", None),
    ]
    to_client(registry).set_registered_model_alias(registry.name, "production", "2")
    assert [row[:4] for row in recorded(registry, tables)] == [
        (1, "Archived", "Archived", "mlflow"),
        (2, "Production", "Production", "mlflow"),
    ]
    to_client(registry).delete_model_version(registry.name, "1")
    assert recorded(registry, tables) == [(1, "Archived", "deleted", "mlflow", None)]
    assert recorded(registry, tables) == []


def test_a_promotion_whose_process_was_killed_is_told_by_the_next_look(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    registry.promote(3, "Staging", Promotion("Staging", "promote_model", "Ada", forced=True).to_tags())
    # Nothing was recorded; a sensor looks.
    assert recorded(registry, tables) == [(3, "None", "Staging", "Ada", None)]
    assert tables.read(STAGE_HISTORY, ["forced"]).to_pylist() == [{"forced": True}]


def test_a_promotion_that_was_killed_before_it_moved_anything_is_none(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    killed = Promotion("Production", "promote_model", "Bob").to_tags()
    to_client(registry).set_model_version_tag(registry.name, "2", "promotion", killed["promotion"])
    registry.promote(1, "Production", WHY.to_tags())
    assert recorded(registry, tables) == [(1, "None", "Production", "Ada", "it is better")]


def test_a_promotion_that_another_one_overtook_is_told_as_well(registry: ModelRegistry, tables: DeltaTables) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    registry.promote(2, "Production", Promotion("Production", "promote_model", "Bob").to_tags())
    assert recorded(registry, tables) == [
        (1, "None", "Production", "Ada", "it is better"),
        (1, "Production", "Archived", "Bob", "replaced by version 2"),
        (2, "None", "Production", "Bob", None),
    ]


def test_versions_of_another_registry_have_a_history_of_their_own(
    registry: ModelRegistry, tables: DeltaTables, tmp_path: Path
) -> None:
    """Its numbers are the same. The former versions were not deleted, as far as anybody knows."""
    registry.promote(1, "Production", WHY.to_tags())
    recorded(registry, tables)
    client = to_client(ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'another.db'}"))
    another = ModelRegistry(tracking_uri=client.tracking_uri)
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "another.db")
    client.delete_registered_model(registry.name)
    assert recorded(another, tables) == [], "an empty registry says nothing of them"
    client.create_registered_model(registry.name)
    client.create_model_version(registry.name, (tmp_path / "0").as_uri())
    another.promote(1, "Staging", WHY.to_tags())
    assert [row[:3] for row in recorded(another, tables)] == [(1, "None", "Staging")]
    rows = tables.read(STAGE_HISTORY, ["version_id", "change", "to_stage"]).to_pylist()
    assert sorted((row["change"], row["to_stage"]) for row in rows) == [(1, "Production"), (1, "Staging")]
    assert len({row["version_id"] for row in rows}) == 2
    assert recorded(registry, tables) == [(1, "Staging", "deleted", "mlflow", None)], "the first registry is back"
    assert recorded(registry, tables) == []


def test_two_looks_at_once_come_to_the_same_rows(registry: ModelRegistry, tables: DeltaTables) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    versions = registry.versions()
    record_changes(registry.name, versions, tables)
    again = tables_at(tables.root)
    record_changes(registry.name, versions, again)
    assert len(tables.read(STAGE_HISTORY, ["change"])) == 1


def test_long_findings_fit_into_a_tag(registry: ModelRegistry) -> None:
    findings = tuple(GateFinding("labels", True, "label, " * 500) for _ in range(7))
    registry.promote(1, "Production", Promotion("Production", "promote_model", findings=findings).to_tags())
    promotion = Promotion.of(registry.version(1))
    assert promotion
    assert promotion.findings
    assert len(promotion.findings) == 7


@pytest.mark.parametrize(
    "edited",
    [
        "approved by Ann",
        "[1, 2]",
        '{"stage": "Production"}',
        '{"stage": "Production", "source": "me", "told_at": "yesterday"}',
        '{"stage": "Production", "source": "me", "findings": [{"check": "files"}]}',
    ],
)
def test_a_promotion_tag_that_somebody_edited_is_none(
    registry: ModelRegistry, tables: DeltaTables, edited: str
) -> None:
    to_client(registry).set_model_version_tag(registry.name, "2", "promotion", edited)
    registry.promote(1, "Production", WHY.to_tags())
    assert Promotion.of(registry.version(2)) is None
    assert recorded(registry, tables) == [(1, "None", "Production", "Ada", "it is better")]


def test_a_promotion_keeps_its_fields_and_ignores_those_of_a_later_release(registry: ModelRegistry) -> None:
    tag = json.loads(WHY.to_tags()["promotion"])
    assert tag["findings"] == [{"check": "files", "passed": True, "said": "the same"}]
    moved = registry.promote(1, "Production", {"promotion": json.dumps({**tag, "approved_by": ["Ada", "Bob"]})})
    promotion = Promotion.of(moved)
    assert promotion
    assert (promotion.person, promotion.reason, promotion.promotion_id) == ("Ada", "it is better", tag["promotion_id"])
    assert promotion.announced_at == datetime.fromisoformat(tag["told_at"])
    assert [*(promotion.findings or ())] == [*(WHY.findings or ())]
    assert promotion.moved(moved)


def test_the_newest_change_comes_first_for_people() -> None:
    row = {"model_version": 1, "from_stage": "None", "to_stage": "Production", "aliases": ["production"]}
    by = {"person": None, "source": "mlflow", "reason": None, "forced": True}
    rows = [{**row, **by, "changed_at": datetime(2026, 1, day, tzinfo=UTC)} for day in (1, 2)]
    lines = changes_markdown(rows).splitlines()[2:]
    assert lines[0] == "| 2026-01-02 00:00 | 1 | None → Production | production | mlflow |  (forced) |"
