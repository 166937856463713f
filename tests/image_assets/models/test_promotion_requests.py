"""Requests to promote a version, as stage_history has them."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from image_assets.jobs.promote_model import move
from image_assets.jobs.request_promotion import reviewable
from image_assets.models.promotion_gate import GateFinding
from image_assets.models.promotion_requests import RequestStep, Step, record_step, waiting_request
from image_assets.models.stage_history import Promotion, changes_markdown, read_history
from image_assets.models.stage_mirroring import mirror_moves
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry
from tests.support.tables import tables_at

COLUMNS = ["model_version", "change", "from_stage", "to_stage", "request", "requested_stage", "account", "reason"]


class Account(ModelRegistry):
    """The registry as an account sees it."""

    who: str

    @property
    def account(self) -> str:
        """The account."""
        return self.who


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    """A registry with two versions."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("image_classifier")
    for number in range(2):
        client.create_model_version("image_classifier", (tmp_path / str(number)).as_uri())
    return uri


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def add(step: Step, by: Account, tables: DeltaTables, promotion_id: str = "", stage: str = "Production") -> None:
    findings = [GateFinding("files", True, "the same")]
    one = RequestStep(step, stage, "request_promotion", by.account, None, f"{by.who} says so", promotion_id, findings)
    record_step(one, by.version(1), by, tables)


def test_another_account_approves_and_the_history_tells_it(uri: str, tables: DeltaTables) -> None:
    ada, bob = Account(tracking_uri=uri, who="ada"), Account(tracking_uri=uri, who="bob")
    add("requested", ada, tables)
    with pytest.raises(dg.Failure, match="Account ada requested this promotion, so another account must decide"):
        reviewable(ada.version(1), ada, tables)
    request = reviewable(bob.version(1), bob, tables)
    assert (request.stage, request.by, request.reason) == ("Production", "account ada", "ada says so")
    with pytest.raises(dg.Failure, match="No request for version 2 is waiting. Waiting: version 1"):
        reviewable(bob.version(2), bob, tables)
    approval = Promotion(
        request.stage, "review_promotion", reason="fine", account="bob", promotion_id=request.promotion_id
    )
    move(1, approval, bob, tables)
    add("approved", bob, tables, request.promotion_id)
    mirror_moves(bob, tables)
    rows = sorted(tables.read(STAGE_HISTORY, COLUMNS).to_pylist(), key=lambda row: row["change"])
    assert [tuple(row.values()) for row in rows] == [
        (1, 1, "None", "None", "requested", "Production", "ada", "ada says so"),
        (1, 2, "None", "Production", None, None, "bob", "fine"),
        (1, 3, "Production", "Production", "approved", "Production", "bob", "bob says so"),
    ]
    ids = tables.read(STAGE_HISTORY, ["promotion_id"])["promotion_id"].to_pylist()
    assert set(ids) == {request.promotion_id}
    with pytest.raises(dg.Failure, match="No request for version 1 is waiting. Waiting: none"):
        reviewable(bob.version(1), bob, tables)


def test_a_rejection_leaves_the_version_where_it_is(uri: str, tables: DeltaTables) -> None:
    ada, bob = Account(tracking_uri=uri, who="ada"), Account(tracking_uri=uri, who="bob")
    add("requested", ada, tables, stage="Staging")
    request = reviewable(bob.version(1), bob, tables)
    add("rejected", bob, tables, request.promotion_id, stage=request.stage)
    assert waiting_request(bob.version(1), read_history(bob.name, tables)) is None
    assert [stage for _, stage, _ in bob.state()] == ["None", "None"]
    columns = [*COLUMNS, "changed_at", "aliases", "person", "source", "forced"]
    first, *_ = changes_markdown(tables.read(STAGE_HISTORY, columns).to_pylist()).splitlines()[2:]
    assert "| 1 | Staging rejected |  | bob | bob says so |" in first


def test_a_new_request_replaces_the_former_one(uri: str, tables: DeltaTables) -> None:
    ada, bob = Account(tracking_uri=uri, who="ada"), Account(tracking_uri=uri, who="bob")
    add("requested", ada, tables)
    add("requested", bob, tables, stage="Staging")
    assert reviewable(ada.version(1), ada, tables).stage == "Staging"


def test_a_row_that_another_process_writes_first_takes_no_request_away(uri: str, tables: DeltaTables) -> None:
    """The version is moved in MLflow after the history was read, and a sensor records it with the same number."""

    class Meanwhile(Account):
        """A registry in which somebody moves the version while it is asked."""

        def versions(self) -> list:
            """The versions before the move, whose row is recorded at once."""
            versions = super().versions()
            if versions[0].aliases == ():
                MlflowClient(uri, uri).set_registered_model_alias(self.name, "production", "1")
                mirror_moves(Account(tracking_uri=uri, who="sensor"), tables)
            return versions

    ada = Meanwhile(tracking_uri=uri, who="ada")
    add("requested", ada, tables)
    history = read_history(ada.name, tables)
    assert [row["change"] for row in history] == list(range(1, len(history) + 1))
    assert waiting_request(ada.version(1), history)


def test_the_account_of_a_store_without_accounts_is_that_of_the_operating_system(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MLFLOW_TRACKING_USERNAME", "USER", "LOGNAME"):
        monkeypatch.setenv(variable, "somebody else")
    assert ModelRegistry(tracking_uri=uri).account not in ("", "somebody else")
    assert ModelRegistry(tracking_uri="http://127.0.0.1:5000").account == "somebody else"
