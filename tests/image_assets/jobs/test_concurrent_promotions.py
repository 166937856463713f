"""Promotions that are killed or concurrent: one version serves, and the history has every change exactly once."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient

from image_assets.jobs.promote_model import move
from image_assets.models.stage_history import Promotion, record_changes
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, disagreement
from tests.support.mlflow_server import ADMINISTRATOR, MlflowServer, held_after, log_in
from tests.support.registered_versions import stages
from tests.support.tables import tables_at

ROOT = Path(__file__).parents[3]
TIMEOUT_SECONDS = 300
NAMES = (f"held_{number}" for number in count())
TAG, STAGE, ALIAS = "/model-versions/set-tag", "/model-versions/transition-stage", "/registered-models/alias"


class Change(NamedTuple):
    """A row of stage_history."""

    version: int
    before: str
    after: str
    aliases: tuple[str, ...]
    who: str


def promotion(person: str) -> Promotion:
    return Promotion("Production", "promote_model", person)


def history(tables: DeltaTables) -> list[Change]:
    """The table's rows in order; checks that each version's changes are numbered from 1."""
    columns = ["model_version", "change", "changed_at", "from_stage", "to_stage", "aliases", "person", "source"]
    rows = tables.read(STAGE_HISTORY, columns).to_pylist()
    for version in {row["model_version"] for row in rows}:
        numbers = sorted(row["change"] for row in rows if row["model_version"] == version)
        assert numbers == list(range(1, len(numbers) + 1))
    return [
        Change(
            row["model_version"],
            row["from_stage"],
            row["to_stage"],
            tuple(row["aliases"]),
            row["person"] or row["source"],
        )
        for row in sorted(rows, key=lambda row: (row["changed_at"], row["model_version"], row["change"]))
    ]


@contextmanager
def promotion_process(
    registry: ModelRegistry, url: str, tables: DeltaTables, version: int, person: str
) -> Iterator[subprocess.Popen]:
    """A process that promotes the version once it reads a line from stdin; killed at the end of the block."""
    program = (
        "from image_assets.jobs.promote_model import *\n"
        "from tests.support.tables import tables_at\n"
        f"registry = ModelRegistry(tracking_uri={url!r}, name={registry.name!r})\n"
        f"tables = tables_at({tables.root!r})\n"
        "registry.versions()\n"
        "print('ready', flush=True); input()\n"
        f"move({version}, Promotion('Production', 'promote_model', {person!r}), registry, tables)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def start(*processes: subprocess.Popen) -> None:
    """Lets the processes promote."""
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def with_three_versions(uri: str, folder: Path, name: str) -> ModelRegistry:
    """A registered model with three versions."""
    registry = ModelRegistry(tracking_uri=uri, name=name)
    client = MlflowClient(uri, uri)
    client.create_registered_model(name)
    experiment = client.create_experiment(f"of {name}")
    run = client.create_run(experiment)
    for _ in range(3):
        client.create_model_version(name, f"{run.info.artifact_uri}/classifier", run.info.run_id)
    return registry


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


@pytest.fixture
def registry(
    accounts_server: MlflowServer, tmp_path: Path, tables: DeltaTables, monkeypatch: pytest.MonkeyPatch
) -> ModelRegistry:
    """Three versions on a server; Ada has promoted the first one."""
    log_in(monkeypatch, ADMINISTRATOR)
    registry = with_three_versions(accounts_server.url, tmp_path, next(NAMES))
    move(1, promotion("Ada"), registry, tables)
    return registry


@contextmanager
def held(registry: ModelRegistry, tables: DeltaTables, path: str, request: int = 1) -> Iterator[tuple]:
    """Bob's promotion of version 2, paused at this request, and the line that pauses it."""
    with (
        held_after(registry.tracking_uri, path, request) as line,
        promotion_process(registry, line.url, tables, 2, "Bob") as process,
    ):
        start(process)
        assert line.reached.wait(TIMEOUT_SECONDS)
        yield process, line


@pytest.mark.parametrize(("path", "request_number"), [(TAG, 1), (STAGE, 1), (ALIAS, 2)], ids=["tags", "stage", "alias"])
def test_a_killed_promotion_leaves_one_serving_version_and_is_recorded_once(
    registry: ModelRegistry, tables: DeltaTables, path: str, request_number: int
) -> None:
    with held(registry, tables, path, request_number) as (process, _):
        process.kill()
        process.wait()
    (first,) = history(tables)
    assert first == (1, "None", "Production", ("production",), "Ada")
    serving = registry.serving()
    assert serving
    assert serving.version == (2 if path == ALIAS else 1)  # the alias decides
    assert (disagreement(registry.versions()) is None) == (path != STAGE)
    for _ in range(2):  # the ticks of stage_changes
        record_changes(registry.name, registry.versions(), tables)
    after_kill = {
        TAG: [],
        STAGE: [
            (1, "Production", "Archived", ("production",), "Bob"),
            (2, "None", "Production", (), "Bob"),
        ],
        ALIAS: [(1, "Production", "Archived", (), "Bob"), (2, "None", "Production", ("production",), "Bob")],
    }[path]
    assert history(tables)[1:] == after_kill
    move(2, promotion("Eve"), registry, tables)
    assert registry.state()[:2] == ((1, "Archived", ()), (2, "Production", ("production",)))
    after_retry = {
        TAG: [(1, "Production", "Archived", (), "Eve"), (2, "None", "Production", ("production",), "Eve")],
        STAGE: [
            (1, "Archived", "Archived", (), "Eve"),
            (2, "Production", "Production", ("production",), "Eve"),
        ],
        ALIAS: [],
    }[path]
    assert history(tables)[1 + len(after_kill) :] == after_retry


def test_a_sensor_tick_between_stage_and_alias_attributes_the_change_to_its_author(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    with held(registry, tables, STAGE) as (process, line):
        record_changes(registry.name, registry.versions(), tables)
        line.released.set()
        assert process.wait(TIMEOUT_SECONDS) == 0
    assert {change.who for change in history(tables)[1:]} == {"Bob"}
    assert history(tables)[-1] == (2, "Production", "Production", ("production",), "Bob")
    MlflowClient(registry.tracking_uri).set_registered_model_alias(registry.name, "production", "1")
    record_changes(registry.name, registry.versions(), tables)
    assert {change.who for change in history(tables)[-2:]} == {"mlflow"}


def test_a_promotion_that_overtakes_another_one_wins_and_both_are_recorded(
    registry: ModelRegistry, tables: DeltaTables
) -> None:
    with held(registry, tables, STAGE) as (process, line):
        move(3, promotion("Eve"), registry, tables)
        line.released.set()
        assert process.wait(TIMEOUT_SECONDS) == 0
    assert registry.state() == ((1, "Archived", ()), (2, "Archived", ()), (3, "Production", ("production",)))
    changes = [change._replace(aliases=()) for change in history(tables)]
    assert sorted(changes[1:]) == [
        (1, "Production", "Archived", (), "Eve"),
        (2, "None", "Production", (), "Bob"),
        (2, "Production", "Archived", (), "Eve"),
        (3, "None", "Production", (), "Eve"),
    ]


def test_of_two_concurrent_promotions_the_last_one_stays(registry: ModelRegistry, tables: DeltaTables) -> None:
    with held(registry, tables, STAGE) as (process, line), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        MlflowClient(registry.tracking_uri).transition_model_version_stage(registry.name, "3", "Production")
        line.released.set()
        assert process.wait(TIMEOUT_SECONDS) == 0
    assert registry.state() == ((1, "Archived", ()), (2, "Archived", ()), (3, "Production", ("production",)))


def test_two_processes_that_promote_concurrently_leave_one_serving_version(
    empty_store: Path, tmp_path: Path, tables: DeltaTables
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    registry = with_three_versions(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "image_classifier")
    uri = registry.tracking_uri
    with (
        promotion_process(registry, uri, tables, 1, "Ada") as one,
        promotion_process(registry, uri, tables, 2, "Bob") as other,
    ):
        start(one, other)
        assert [process.wait(TIMEOUT_SECONDS) for process in (one, other)] == [0, 0]
    serving = registry.serving()
    assert serving
    assert serving.aliases == ("production",)
    assert sorted(stages(registry).values()) == ["Archived", "None", "Production"]
    assert disagreement(registry.versions()) is None
    promoted = {(change.version, change.who) for change in history(tables) if change.after == "Production"}
    assert promoted == {(1, "Ada"), (2, "Bob")}
    assert history(tables)[-1].after in ("Production", "Archived")


def test_tags_of_a_killed_promotion_are_ignored_much_later(registry: ModelRegistry) -> None:
    registry.promote(2, "Production", promotion("Bob").to_tags())
    recorded = Promotion.of(registry.version(2))
    assert recorded
    assert recorded.moved(registry.version(2))
    assert not replace(recorded, announced_at=datetime(2026, 1, 1, tzinfo=UTC)).moved(registry.version(2))
