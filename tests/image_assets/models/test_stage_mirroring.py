"""Aliases and stages that are moved in MLflow: the other one follows, once per move."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from image_assets.models.stage_history import Promotion, record_changes
from image_assets.models.stage_mirroring import mirror_moves
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, UnclearServingVersion, serving_version, shadows
from tests.support.registered_versions import with_three_versions
from tests.support.tables import tables_at

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NAME = "image_classifier"
WHY = Promotion("Production", "promote_model", "Ada")


class Moves(MlflowClient):
    """What people do in MLflow."""

    def stage(self, version: int, stage: str, *, archive: bool = False) -> None:
        self.transition_model_version_stage(NAME, str(version), stage, archive_existing_versions=archive)

    def alias(self, version: int, alias: str = "production") -> None:
        self.set_registered_model_alias(NAME, alias, str(version))

    def no_alias(self, alias: str = "production") -> None:
        self.delete_registered_model_alias(NAME, alias)


@pytest.fixture
def registry(tmp_path: Path, empty_store: Path) -> ModelRegistry:
    return with_three_versions(tmp_path, empty_store)


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def moves_of(registry: ModelRegistry) -> Moves:
    return Moves(registry.tracking_uri, registry.tracking_uri)


def state(registry: ModelRegistry) -> list[str]:
    """Each version's stage and aliases."""
    return [" @".join([stage, *aliases]) for _, stage, aliases in registry.state()]


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([lambda do: do.alias(2)], ["Archived", "Production @production", "None"]),
        ([lambda do: do.stage(2, "Production")], ["Archived", "Production @production", "None"]),
        ([lambda do: do.stage(2, "Production", archive=True)], ["Archived", "Production @production", "None"]),
        ([lambda do: do.no_alias()], ["None", "None", "None"]),
        ([lambda do: do.stage(1, "Archived")], ["Archived", "None", "None"]),
        ([lambda do: (do.alias(2), do.stage(3, "Production"))], ["Archived", "Production @production", "Archived"]),
        (
            [lambda do: do.alias(2), lambda do: do.stage(1, "Production")],
            ["Production @production", "Archived", "None"],
        ),
        (
            [lambda do: do.stage(2, "Production"), lambda do: do.alias(1)],
            ["Production @production", "Archived", "None"],
        ),
        ([lambda do: do.alias(2, "staging")], ["Production @production", "Staging @staging", "None"]),
        ([lambda do: do.stage(2, "Staging")], ["Production @production", "Staging @staging", "None"]),
        (
            [lambda do: do.stage(2, "Staging"), lambda do: do.stage(3, "Staging")],  # two shadows
            ["Production @production", "Staging @staging", "Staging"],
        ),
        (
            [lambda do: do.alias(2, "staging"), lambda do: do.alias(3, "staging")],
            ["Production @production", "Archived", "Staging @staging"],
        ),
        (
            [lambda do: (do.stage(2, "Staging"), do.alias(3, "staging"))],  # an alias replaces shadows, as a promotion
            ["Production @production", "Archived", "Staging @staging"],
        ),
        ([lambda do: do.alias(2, "staging"), lambda do: do.alias(2)], ["Archived", "Production @production", "None"]),
        ([lambda do: (do.alias(2, "staging"), do.alias(2))], ["Archived", "Production @production", "None"]),
        (
            [lambda do: do.alias(2, "staging"), lambda do: do.no_alias("staging")],
            ["Production @production", "None", "None"],
        ),
    ],
)
def test_what_is_moved_in_mlflow_is_followed(
    registry: ModelRegistry, tables: DeltaTables, moves: list[Callable[[Moves], object]], expected: list[str]
) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    versions = mirror_moves(registry, tables)
    for move in moves:
        move(moves_of(registry))
        versions = mirror_moves(registry, tables)
    assert state(registry) == expected
    assert versions == registry.versions()
    count = len(tables.read(STAGE_HISTORY, ["change"]))
    mirror_moves(registry, tables)
    assert (state(registry), len(tables.read(STAGE_HISTORY, ["change"]))) == (expected, count)


def test_the_history_tells_a_move_by_hand_from_what_followed(registry: ModelRegistry, tables: DeltaTables) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    mirror_moves(registry, tables)
    moves_of(registry).alias(2)
    mirror_moves(registry, tables)
    columns = ["model_version", "change", "to_stage", "aliases", "source"]
    rows = sorted(tuple(map(str, row.values())) for row in tables.read(STAGE_HISTORY, columns).to_pylist())
    assert rows == [
        ("1", "1", "Production", "['production']", "promote_model"),
        ("1", "2", "Production", "[]", "mlflow"),
        ("1", "3", "Archived", "[]", "stage_changes"),
        ("2", "1", "None", "['production']", "mlflow"),
        ("2", "2", "Production", "['production']", "stage_changes"),
    ]


def test_a_version_that_serves_by_its_stage_alone_keeps_serving_and_gets_the_alias(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    moves_of(registry).stage(2, "Production")
    serving = serving_version(registry.versions())
    assert serving
    assert serving.version == 2
    mirror_moves(registry, tables)
    assert state(registry) == ["None", "Production @production", "None"]


def test_a_stage_that_an_earlier_release_followed_keeps_serving(registry: ModelRegistry, tables: DeltaTables) -> None:
    registry.promote(1, "Production", WHY.to_tags())
    record_changes(NAME, registry.versions(), tables)
    moves_of(registry).stage(2, "Production", archive=True)
    record_changes(NAME, registry.versions(), tables)  # its sensor recorded the move, and left the alias behind
    assert state(registry) == ["Archived @production", "Production", "None"]
    mirror_moves(registry, tables)
    assert state(registry) == ["Archived", "Production @production", "None"]


def test_of_several_versions_in_production_none_is_chosen_without_an_alias(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    for version in (1, 2):
        moves_of(registry).stage(version, "Production")
    mirror_moves(registry, tables)
    assert state(registry) == ["Production", "Production", "None"]
    with pytest.raises(UnclearServingVersion, match="versions 1, 2 are all in stage Production"):
        registry.serving()
    moves_of(registry).alias(2)
    mirror_moves(registry, tables)
    assert state(registry) == ["Archived", "Production @production", "None"]


def test_a_version_is_a_shadow_by_alias_or_stage_but_not_while_it_serves(registry: ModelRegistry) -> None:
    do = moves_of(registry)
    do.alias(1)
    for version in (1, 2):
        do.stage(version, "Staging")
    do.alias(3, "staging")
    assert [version.version for version in shadows(registry.versions())] == [2, 3]
