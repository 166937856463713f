"""Runs that a command makes in its own process: their lines on the terminal, their failures, and runs that were lost.

A run is lost when its process is gone without having said so: killed, or the machine was switched off. Dagster's
launcher on one machine never looks for them. They would stay `STARTED` and keep their tables' pools.
"""

import json
import logging
import re
import socket
import sys
import time

import dagster as dg
import psutil
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._utils.error import SerializableErrorInfo

from resources.progress import ProgressLine, is_terminal
from scripts.terminal import emphasized, remedy

MOST_LINES = 12  # of what a failure says: the run in Dagster has all of it
ON_TERMINAL = {"loggers": {"console": {}}}
LAUNCHED_BY = ".dagster/grpc_info"  # where Dagster notes the code server that a run was started from
RUN_BY = "image_assets/process"  # where a command notes the process that its run is in
RUNNING = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


@dg.logger(config_schema={})
def terminal(context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's console logger in short: when, which step, what."""
    from definitions import defs

    assets = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}

    def is_start(event: dg.DagsterEvent | None) -> bool:
        # Of assets only: checks are too many and too short to announce.
        return event is not None and event.event_type_value == "STEP_START" and event.step_key in assets

    class Short(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            meta = getattr(record, "dagster_meta", {})
            event = meta.get("dagster_event")
            step, text = meta.get("step_key") or "", (meta.get("orig_message") or record.getMessage()).splitlines()[0]
            if is_start(event):
                step, text = emphasized(f"{step:<20}", "strong"), "…"
            elif record.levelno >= logging.WARNING:
                text = emphasized(text, "bad" if record.levelno >= logging.ERROR else "warning")
            return f"{time.strftime('%H:%M:%S')}  {step:<20} {text}"

    def worth_showing(record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        # Of checks nothing but warnings: that one is skipped, since there was nothing to check, is no news.
        said = record.levelno >= logging.WARNING or (record.levelno >= logging.INFO and meta.get("step_key") in assets)
        return bool(said) or is_start(meta.get("dagster_event"))

    class Above(logging.StreamHandler):
        """Lines above the live line of a terminal, which goes on below them."""

        def emit(self, record: logging.LogRecord) -> None:
            if is_terminal():
                ProgressLine.write(self.format(record), file=sys.stdout)
            else:
                super().emit(record)

    logger = logging.Logger("image_assets.terminal", level=logging.DEBUG)
    handler = Above(sys.stdout)
    handler.setFormatter(Short())
    handler.addFilter(worth_showing)
    logger.addHandler(handler)
    return logger


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What went wrong, by step, in the words of the first cause; before any step, what a resource said."""
    steps = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    resources = [event for event in result.all_events if event.event_type_value == "RESOURCE_INIT_FAILURE"]
    return [
        *(f"{event.step_key}: {first_cause(event.step_failure_data.error)}" for event in steps),
        *(f"before any step: {first_cause(event.engine_event_data.error)}" for event in resources),
    ]


def first_cause(error: SerializableErrorInfo | None) -> str:
    """What the exception said that all others followed from."""
    while error is not None and error.cause is not None:
        error = error.cause
    lines = re.sub(r"\x1b\[\d*m", "", error.message if error else "failed").strip().splitlines()
    return "\n    ".join([*lines[:MOST_LINES], *(["…"] if len(lines) > MOST_LINES else [])])


def tell_failures(result: dg.ExecuteInProcessResult) -> None:
    """Say what went wrong in which step, and what to do about it."""
    told = failures(result)
    print(emphasized("\nNot completed:", "bad", sys.stderr), *told, sep="\n  ", file=sys.stderr)
    for do in dict.fromkeys(remedy(failure) or "" for failure in told):
        if do:
            print(f"What to do: {emphasized(do, 'strong', sys.stderr)}", file=sys.stderr)
    print("The same command again goes on from what was done.", file=sys.stderr)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """The metadata of each materialized asset, by name."""
    events = result.get_asset_materialization_events()
    materializations = [event.step_materialization_data.materialization for event in events]
    return {
        made.asset_key.to_user_string(): {name: value.value for name, value in made.metadata.items()}
        for made in materializations
    }


def seconds_by_step(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """How long each step took."""
    return {
        event.step_key or "": event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.event_type_value == "STEP_SUCCESS"
    }


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
