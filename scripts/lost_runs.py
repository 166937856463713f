"""Runs whose process is gone without having said so: killed, or the machine was switched off.

Dagster's launcher on one machine never looks for them. They would stay `STARTED` and keep their tables' pools.
"""

import json
import socket

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

LAUNCHED_BY = ".dagster/grpc_info"  # where Dagster notes the code server that a run was started from
RUNNING = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def is_lost(run: DagsterRun) -> bool:
    """Whether the code server that started the run, and ends with its runs, answers no more."""
    path = json.loads(run.tags.get(LAUNCHED_BY, "{}")).get("socket")
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0


def end_lost_runs(instance: DagsterInstance) -> list[str]:
    """Record lost runs as failed and give their pools back; the ids of these runs."""
    lost = [run for run in instance.get_runs(RunsFilter(statuses=RUNNING)) if is_lost(run)]
    for run in lost:
        instance.report_run_failed(run, "The process of this run ended without a word: it was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in lost]
