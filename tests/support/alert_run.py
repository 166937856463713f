"""A run of prediction_alerts on the tables of a folder, also in a process that is killed at a named point."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import pyarrow as pa
from pydantic import PrivateAttr
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.predictions.alert_rules import to_rules
from image_assets.predictions.prediction_alerts import record_and_send
from image_assets.schemas import CURRENT_PREDICTIONS, PREDICTION_ALERTS
from resources.alerts import AlertSender
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.mlflow.model_registry import ModelRegistry

NOON = datetime(2020, 6, 1, 12, tzinfo=UTC)  # long ago
MERGES = ("recorded", "claimed", "sent")  # what a run commits to the table for one message


def predict(delta_tables: DeltaTables, *predictions: tuple[str, str | None, float | None], version: int = 1) -> None:
    """Rows of current_predictions: path, label, probability."""
    rows = [
        {
            "path": path,
            "image_id": f"{path} as it is",
            "label": label,
            "probability": probability,
            "model_name": "image_classifier",
            "model_version": version,
            "version_id": f"files of version {version}",
            "predicted_at": NOON,
        }
        for path, label, probability in predictions
    ]
    names = CURRENT_PREDICTIONS.columns.fieldNames()
    delta_tables.merge(
        pa.Table.from_pylist(rows, to_arrow_schema(CURRENT_PREDICTIONS.columns)),
        CURRENT_PREDICTIONS,
        updates={name: f"new.{name}" for name in names},
    )


def run(
    delta_tables: DeltaTables, rules: str, addresses: dict[str, str], minutes: float = 0, registry: str = ""
) -> dict[str, int]:
    """What a run does, so many minutes after noon; what it says."""
    return record_and_send(
        delta_tables,
        to_rules(rules, "alert_rules.yaml"),
        AlertSender(addresses=addresses),
        ModelRegistry(tracking_uri=registry),
        NOON + timedelta(minutes=minutes),
    )


def alerts(delta_tables: DeltaTables, *columns: str) -> list[Any]:
    """The columns of all alerts, in order; one column as plain values."""
    rows = delta_tables.read(PREDICTION_ALERTS, columns).to_pylist()
    values = [tuple(row.values()) for row in rows]
    return sorted((value[0] for value in values) if len(columns) == 1 else values)


class WatchedTables(DeltaTables):
    """Tables whose writer does something before and after each of its commits."""

    _at: Callable[[str], object] = PrivateAttr()

    def merge(self, rows: pa.Table, table: Table, **more: Any) -> None:
        """Commit, with what is done before and after."""
        number = self.snapshot(table).version if table == PREDICTION_ALERTS else len(MERGES)
        name = MERGES[number] if number < len(MERGES) else "more"
        self._at(f"before {name}")
        super().merge(rows, table, **more)
        self._at(f"after {name}")


def watched(root: str, at: Callable[[str], object]) -> WatchedTables:
    """The tables of a folder, and what is done before and after commits."""
    tables = WatchedTables(pyspark=DeltaSpark(spark_config={}), root=root)
    tables._at = at
    return tables


def killed_run(root: str, point: str, rules: str, addresses: dict[str, str]) -> None:
    """A first run that is killed at the point, by itself or from outside."""
    run(watched(root, lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == point else None), rules, addresses)


def start(*arguments: object) -> BaseProcess:
    """A killed run in a process of its own; what all of them import is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=killed_run, args=arguments)
    process.start()
    return process
