"""Runs whose process is gone without having said so: killed, or the machine was switched off.

Dagster's launcher on one machine never looks for them. They would stay `STARTED` and keep their tables' pools.
"""

import json
import socket

import psutil
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

LAUNCHED_BY = ".dagster/grpc_info"  # where Dagster notes the code server that a run was started from
RUN_BY = "image_assets/process"  # where a command notes the process that its run is in
RUNNING = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def process_tags() -> dict[str, str]:
    """Tags for a run in this process: the machine, the process, and when it began, for its number is used again."""
    process = psutil.Process()
    return {RUN_BY: json.dumps([socket.gethostname(), process.pid, process.create_time()])}


def is_lost(run: DagsterRun) -> bool:
    """Whether the command that runs it is gone, or the code server that started it and ends with its runs."""
    if RUN_BY in run.tags:
        machine, process, began = json.loads(run.tags[RUN_BY])
        return machine == socket.gethostname() and not is_running(process, began)
    path = json.loads(run.tags.get(LAUNCHED_BY, "{}")).get("socket")
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0


def is_running(process: int, began: float) -> bool:
    """Whether the process of this number is still the one that began then."""
    try:
        return abs(psutil.Process(process).create_time() - began) < 1
    except psutil.NoSuchProcess:
        return False


def end_lost_runs(instance: DagsterInstance) -> list[str]:
    """Record lost runs as failed, give their pools back and say so; the ids of these runs."""
    lost = [run for run in instance.get_runs(RunsFilter(statuses=RUNNING)) if is_lost(run)]
    for run in lost:
        instance.report_run_failed(run, "The process of this run ended without a word: it was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        print(f"run {run.run_id} was lost when its process was killed: recorded as failed", flush=True)
    return [run.run_id for run in lost]
