"""Jobs that a command runs in its own process: progress on the terminal, failures, and runs that were lost.

A run is lost when its process is killed or its machine is switched off before Dagster records the end. Dagster's
launcher for one machine never notices: the run would stay `STARTED` and block its tables' pools.
"""

import json
import logging
import re
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import dagster as dg

from resources.progress import ProgressLine, is_terminal
from resources.run_launcher import LAUNCHED_BY, RUN_BY, is_running, other_machine, process_identity
from scripts.terminal import is_own_raise, printable, remedy, styled

FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line (?P<line>\d+)')  # in a stack trace
NOT_EXECUTED = "Not executing."  # the end of Dagster's error for each step that depends on a failed one
SHOWN_LINES = 12  # of an error; the run's page in Dagster has all of it
UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


class ErrorRecord(Protocol):
    """An exception as Dagster stores it in an event."""

    @property
    def message(self) -> str: ...

    @property
    def stack(self) -> Sequence[str]: ...

    @property
    def cause(self) -> "ErrorRecord | None": ...


def run_job(
    name: str,
    assets: Collection[dg.AssetKey] | None = None,
    on_materialization: Callable[[dg.AssetMaterialization], object] | None = None,
) -> dg.ExecuteInProcessResult:
    """Runs one of the graph's jobs in this process, with short log lines on the terminal.

    Args:
        name: The job.
        assets: The assets that the run makes, of those of the job; by default all.
        on_materialization: Gets each materialization as soon as Dagster has stored it.
    """
    from definitions import defs

    @dg.logger(config_schema={})
    def logger(context: dg.InitLoggerContext) -> logging.Logger:
        logger = terminal_logger(context)
        if on_materialization:
            logger.addHandler(MaterializationHandler(on_materialization))
        return logger

    job = dg.Definitions.merge(defs, dg.Definitions(loggers={"console": logger})).resolve_job_def(name)
    with dg.DagsterInstance.get() as instance:
        end_lost_runs(instance)
        return job.execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {}}},
            tags=process_tags(),
            raise_on_error=False,
            asset_selection=None if assets is None else sorted(assets),
        )


class MaterializationHandler(logging.Handler):
    """Passes on each materialization of a run, which Dagster logs like every other event."""

    def __init__(self, receive: Callable[[dg.AssetMaterialization], object]) -> None:
        super().__init__()
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "dagster_meta", {}).get("dagster_event")
        if event is not None and event.event_type_value == "ASSET_MATERIALIZATION":
            self._receive(event.step_materialization_data.materialization)


def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's console logger in short: time, step, message."""
    from definitions import defs

    assets = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}

    def starts_asset(event: dg.DagsterEvent | None) -> bool:
        # Checks are too many and too short to announce.
        return event is not None and event.event_type_value == "STEP_START" and event.step_key in assets

    class ShortFormatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            meta = getattr(record, "dagster_meta", {})
            event = meta.get("dagster_event")
            step, text = (
                meta.get("step_key") or "",
                printable((meta.get("orig_message") or record.getMessage()).splitlines()[0]),
            )
            if starts_asset(event):
                step, text = styled(f"{step:<20}", "strong"), "…"
            elif record.levelno >= logging.WARNING:
                text = styled(text, "bad" if record.levelno >= logging.ERROR else "warning")
            return f"{time.strftime('%H:%M:%S')}  {step:<20} {text}"

    def is_shown(record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        if str(meta.get("orig_message")).endswith(NOT_EXECUTED):
            return False
        # Of checks only warnings: a check that was skipped because there was nothing to check is not worth a line.
        is_message = record.levelno >= logging.INFO and meta.get("step_key") in assets
        return record.levelno >= logging.WARNING or is_message or starts_asset(meta.get("dagster_event"))

    class HandlerAboveProgress(logging.StreamHandler):
        """On a terminal, prints above the progress line, which stays at the bottom."""

        def emit(self, record: logging.LogRecord) -> None:
            if is_terminal():
                ProgressLine.write(self.format(record), file=sys.stdout)
            else:
                super().emit(record)

    logger = logging.Logger("image_assets.terminal", level=logging.DEBUG)
    handler = HandlerAboveProgress(sys.stdout)
    handler.setFormatter(ShortFormatter())
    handler.addFilter(is_shown)
    logger.addHandler(handler)
    return logger


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What failed each step, and each resource that failed before any step ran; of a blocking check, what it found."""
    evaluations = [event for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    checks = {event.step_key: event.asset_check_evaluation_data for event in evaluations}
    found = {step: shortened(one.description) for step, one in checks.items() if not one.passed and one.description}
    return [f"{where}: {found.get(where) or to_text(explained(error))}" for where, error in failed(result)]


def failed(result: dg.ExecuteInProcessResult) -> list[tuple[str, ErrorRecord | None]]:
    """Each failed step, and each resource that failed before any step ran, with its error."""
    steps = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    resources = [event for event in result.all_events if event.event_type_value == "RESOURCE_INIT_FAILURE"]
    return [
        *((event.step_key or "", event.step_failure_data.error) for event in steps),
        *(("before any step", event.engine_event_data.error) for event in resources),
    ]


def explained(error: ErrorRecord | None) -> ErrorRecord | None:
    """The latest exception that this project raised, whose message tells users what to do, else the root cause."""
    latest = error
    while latest is not None:
        raised_at = FRAME.match(latest.stack[-1]) if latest.stack else None
        if raised_at and is_own_raise(raised_at["file"], int(raised_at["line"])):
            return latest
        latest = latest.cause
    return root_cause(error)


def root_cause(error: ErrorRecord | None) -> ErrorRecord | None:
    """The exception that led to all the others."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error


def to_text(error: ErrorRecord | None) -> str:
    """An exception's message, shortened."""
    return shortened(error.message if error else "failed")


def shortened(text: str) -> str:
    """The first lines of a text, indented as the terminal shows them."""
    lines = re.sub(r"\x1b\[\d*m", "", text).strip().splitlines()
    return "\n    ".join([*map(printable, lines[:SHOWN_LINES]), *(["…"] if len(lines) > SHOWN_LINES else [])])


def remedy_for(error: ErrorRecord | None) -> str:
    """What to do about an exception; empty if its message says so itself, or if nothing is known."""
    shown, root = to_text(explained(error)), root_cause(error)
    return remedy(f"{shown} {to_text(root)} {root.stack[-1] if root and root.stack else ''}") or ""


def print_failures(result: dg.ExecuteInProcessResult) -> None:
    """Prints which steps failed, why, and what to do about it."""
    print(styled("\nFailed:", "bad", sys.stderr), *failures(result), sep="\n  ", file=sys.stderr)
    if waiting := sum(result.is_node_untouched(node.name) for node in result.job_def.nodes):
        print(f"Steps not executed because of that: {waiting}", file=sys.stderr)
    for action in dict.fromkeys(remedy_for(error) for _, error in failed(result)):
        if action:
            print(f"What to do: {styled(action, 'strong', sys.stderr)}", file=sys.stderr)
    print("Run the same command again to continue from the last completed step.", file=sys.stderr)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """The metadata of each materialized asset, by name."""
    events = result.get_asset_materialization_events()
    materializations = [event.step_materialization_data.materialization for event in events]
    return {
        made.asset_key.to_user_string(): {name: value.value for name, value in made.metadata.items()}
        for made in materializations
    }


def seconds_by_step(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """The duration of each step, by name."""
    return {
        event.step_key or "": event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.event_type_value == "STEP_SUCCESS"
    }


def process_tags() -> dict[str, str]:
    """The run tags that name this process."""
    return {RUN_BY: json.dumps(process_identity())}


def is_lost(run: dg.DagsterRun) -> bool:
    """Whether the process that runs it is gone, or the code server that started it (its runs end with it).

    Runs of other machines that use the same database are not lost: this machine cannot see their processes.
    """
    if other_machine(run):
        return False
    if run.tags.get(RUN_BY):
        _, process_id, start = json.loads(run.tags[RUN_BY])
        return not is_running(process_id, start)
    path = json.loads(run.tags.get(LAUNCHED_BY, "{}")).get("socket")
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Records lost runs as failed, frees their pools, and returns their ids."""
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if is_lost(run)]
    for run in lost:
        instance.report_run_failed(run, "The process of this run was killed before the run ended.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        print(f"Run {run.run_id} was killed before it ended; it is now recorded as failed.", flush=True)
    return [run.run_id for run in lost]
