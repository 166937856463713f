"""The executors of all jobs, and of those that can repeat their work whenever there is something new."""

import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import NoReturn, Protocol, cast

import dagster as dg

from image_assets.data.folder_changes import folder_changes, require_plausible, without_unsettled
from image_assets.data.folder_layout import read_layout
from image_assets.data.given_labels import label_table_change
from image_assets.data.image_files import read_ledger
from image_assets.data.labels import outdated_labels
from image_assets.data.raw_images import TRIGGER_TAG
from image_assets.predictions.alert_sending import due_alerts
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_log import last_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.mlflow.model_registry import (
    ModelRegistry,
    RegistryUnavailable,
    UnclearServingVersion,
    serving_version,
    shadows,
    version_numbers,
)

AVAILABLE_NOW = "available_now"
SECONDS = {"second": 1, "minute": 60, "hour": 3600}
POOL_SECONDS = 1.0  # between two checks whether a pool has become free
INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class CheckFailed(RuntimeError):
    """A check for new work failed for a reason that may pass, such as a registry that is down."""


class RunResources(Protocol):
    """The resources that the checks for new work read."""

    delta_tables: DeltaTables
    image_folder: ImageFolder
    label_table: ExternalTable
    model_registry: ModelRegistry


Check = Callable[[dg.DagsterInstance, RunResources], str]  # describes the new work; empty if there is none


def files_to_ingest(_: dg.DagsterInstance, resources: RunResources) -> str:
    """The files that were added, changed or deleted since the folder was last ingested."""
    try:
        changes = folder_changes(resources.image_folder, read_ledger(resources.delta_tables), part=None)
        require_plausible(changes, resources.image_folder, resources.delta_tables)
    except FolderUnavailable as error:
        raise CheckFailed(str(error)) from error
    changes = without_unsettled(changes, resources.image_folder)
    return str(changes) if changes.digest() else ""


def label_table_to_read(instance: dg.DagsterInstance, resources: RunResources) -> str:
    """The label table's version, if it has changed since it was last read."""
    try:
        change = label_table_change(instance, resources.label_table)
    except (FileNotFoundError, ValueError) as error:
        raise CheckFailed(str(error)) from error
    return f"the label table: {change}" if change else ""


def corrections_to_apply(_: dg.DagsterInstance, resources: RunResources) -> str:
    """The number of label corrections that featured_images does not have yet."""
    layout = read_layout(resources.delta_tables, resources.image_folder)
    outdated = outdated_labels(resources.delta_tables, FEATURED_IMAGES, layout)
    return f"{len(outdated)} corrected labels" if outdated else ""


def images_to_predict(instance: dg.DagsterInstance, resources: RunResources) -> str:
    """What has changed since predictions were last made: the production model, shadow versions or featured_images."""
    try:
        versions = resources.model_registry.versions()
        serving, staged = serving_version(versions), version_numbers(shadows(versions))
    except (RegistryUnavailable, UnclearServingVersion) as error:
        raise CheckFailed(str(error)) from error
    before = last_metadata(instance, "image_predictions")
    version_id = serving.version_id if serving else "none"
    now = (str(serving.version) if serving else "none", version_id)
    if (before.get("serving_version"), before.get("serving_version_id", version_id)) != now:
        return f"version {serving.version} serves" if serving else "no version serves"
    if before.get("shadow_versions") != staged:
        return f"in Staging: {staged}"
    if (serving, staged) == (None, "none"):
        return ""
    images = resources.delta_tables.last_change(FEATURED_IMAGES)
    return "" if before.get("featured_images_version") == images else "featured_images has new rows"


def alerts_to_send(_: dg.DagsterInstance, resources: RunResources) -> str:
    """The alerts that are due to be sent or retried."""
    return due_alerts(resources.delta_tables, datetime.now(UTC))


def interval_seconds(trigger: str) -> float | None:
    """The seconds between two checks for new work; None for a single pass."""
    if trigger == AVAILABLE_NOW:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) (second|minute|hour)s?", trigger.strip())
    if match is None or float(match[1]) == 0:
        raise dg.DagsterInvariantViolationError(
            f"Invalid trigger {trigger!r}: expected {AVAILABLE_NOW} for a single pass, or an interval such as "
            "10 seconds, 5 minutes or 1 hour."
        )
    return float(match[1]) * SECONDS[match[2]]


def rows_added(event: dg.DagsterEvent) -> list[str]:
    """The table and its change in rows, if the event materializes a table that gained or lost rows."""
    if not event.is_step_materialization:
        return []
    materialization = event.step_materialization_data.materialization
    rows = materialization.metadata.get("rows_added")
    return [f"{materialization.asset_key.to_user_string()} {rows.value:+,}"] if rows and rows.value else []


def blocking_pool(event: dg.DagsterEvent) -> str | None:
    """The pool that the event's step is waiting for; None if the event says something else."""
    if event.event_type is not dg.DagsterEventType.ENGINE_EVENT or event.step_key is None:
        return None
    pool = event.engine_event_data.metadata.get("pool")
    return str(pool.value) if pool else None


def is_queued(instance: dg.DagsterInstance, pool: str, run_id: str, step_key: str) -> bool:
    """Whether the step is still waiting for a slot of the pool."""
    pending = instance.event_log_storage.get_concurrency_info(pool).pending_steps
    return any((step.run_id, step.step_key) == (run_id, step_key) and not step.assigned_timestamp for step in pending)


def raise_interrupt(*_: object) -> NoReturn:
    """The signal handler while nothing runs that an exception could leave half done."""
    raise dg.DagsterExecutionInterruptedError


@contextmanager
def interruptible(stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Raises at once when a stop signal comes, or if one has already come.

    Dagster and pyspark install handlers that postpone a signal until the next step, or handle SIGINT only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    handlers = {number: signal.signal(number, raise_interrupt) for number in STOP_SIGNALS}
    try:
        if stop_requested():
            raise_interrupt()
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM has come since its last call.

    It does not depend on handlers: a library can turn the exception that a handler raises into another error, and then
    only the signal itself tells that the run was asked to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield partial(has_stop_signal, receiver)
        finally:
            signal.set_wakeup_fd(before)


def has_stop_signal(receiver: socket.socket) -> bool:
    """Whether a stop signal is among the signals that have not been read yet; reads them."""
    try:
        return not STOP_SIGNALS.isdisjoint(receiver.recv(4096))
    except BlockingIOError:  # no signal
        return False


def require_active(instance: dg.DagsterInstance, run_id: str) -> None:
    """Interrupts the process of a run that Dagster considers finished, or that it is terminating."""
    dagster_run = instance.get_run_by_id(run_id)
    if dagster_run is None or dagster_run.status is not dg.DagsterRunStatus.STARTED:
        raise dg.DagsterExecutionInterruptedError("Dagster has marked this run as finished or canceled.")


def announce_cancellation(instance: dg.DagsterInstance, run_id: str) -> None:
    """Marks the run as canceling: Dagster treats a signal without an announcement as a crash."""
    dagster_run = instance.get_run_by_id(run_id)
    if dagster_run and dagster_run.status is dg.DagsterRunStatus.STARTED:
        instance.report_run_canceling(dagster_run, "A signal stops this continuous run.")


class ContinuousExecutor(dg.Executor):
    """Runs all steps with Dagster's in-process executor: once, or whenever a check finds new work.

    The parameters of the methods are Dagster's plan context and plan, whose types are not public.
    """

    def __init__(self, in_process: dg.Executor, trigger: str, checks: tuple[Check, ...]) -> None:
        self.in_process = in_process
        self.trigger = trigger
        self.interval = interval_seconds(trigger)
        self.checks = checks

    @property
    def retries(self):
        """Whether steps are retried: as in the in-process executor."""
        return self.in_process.retries

    def execute(self, plan_context, execution_plan) -> Iterator[dg.DagsterEvent]:
        """The run's events. However it ends, it releases its pools; a signal cancels a continuous run."""
        instance, run_id = plan_context.instance, plan_context.run_id
        with stop_signals() as stop_requested:
            try:
                if self.interval is None:
                    yield from self._one_pass(plan_context, execution_plan, stop_requested)
                else:
                    yield from self._passes(plan_context, execution_plan, stop_requested)
            finally:
                stopped = stop_requested() or isinstance(sys.exception(), INTERRUPTS)
                if stopped and self.interval is not None:
                    announce_cancellation(instance, run_id)
                instance.event_log_storage.free_concurrency_slots_for_run(run_id)

    def _one_pass(self, plan_context, execution_plan, stop_requested: Callable[[], bool]) -> Iterator[dg.DagsterEvent]:
        """Executes every step in order, each in its pool."""
        instance, run_id = plan_context.instance, plan_context.run_id
        events = cast(Generator[dg.DagsterEvent, None, None], self.in_process.execute(plan_context, execution_plan))
        with closing(events):
            for event in events:
                yield event
                if pool := blocking_pool(event):
                    # Dagster's executor would check for a free slot in a loop without a pause, deaf to signals.
                    with interruptible(stop_requested):
                        while is_queued(instance, pool, run_id, str(event.step_key)):
                            time.sleep(POOL_SECONDS)
                            require_active(instance, run_id)

    def _passes(self, plan_context, execution_plan, stop_requested: Callable[[], bool]) -> Iterator[dg.DagsterEvent]:
        """Executes a pass, and another one whenever there is new work, until a step fails or the run is stopped."""
        if {step.key for step in execution_plan.steps} != set(execution_plan.step_keys_to_execute):
            raise dg.DagsterInvariantViolationError(
                "A continuous run repeats all steps of its job, but this run has only some of them: "
                f"{execution_plan.step_keys_to_execute}. Launch the job instead of re-executing a part of it, or set "
                f"its trigger to {AVAILABLE_NOW}."
            )
        instance, log = plan_context.instance, plan_context.log
        instance.add_run_tags(plan_context.run_id, {TRIGGER_TAG: self.trigger})
        log.info(
            f"Continuous run: one pass now, then another whenever a check, every {self.trigger}, finds new work. "
            "To stop, terminate the run; the next run resumes where it stopped."
        )
        resources = plan_context.job.get_definition().resource_defs
        config = plan_context.run_config.get("resources", {})
        with dg.build_resources(resources, instance, config, plan_context.dagster_run) as built:
            work = "the first one"
            for number in count(1):
                started, failed, added = time.monotonic(), False, []
                for event in self._one_pass(plan_context, execution_plan, stop_requested):
                    yield event
                    failed = failed or event.is_step_failure
                    added += rows_added(event)
                if failed:  # the run ends as a batch run does
                    return
                seconds = time.monotonic() - started
                log.info(f"pass {number} ({work}): {', '.join(added) or 'no new rows'}, in {seconds:.0f} s")
                with interruptible(stop_requested):
                    work = self._new_work(plan_context, cast(RunResources, built), started)

    def _new_work(self, plan_context, resources: RunResources, checked_at: float) -> str:
        """Waits until a check finds new work, and describes it. Logs a failing check once and repeats it."""
        instance, last_error = plan_context.instance, ""
        while True:
            time.sleep(max(0.0, checked_at + (self.interval or 0) - time.monotonic()))
            checked_at = time.monotonic()
            require_active(instance, plan_context.run_id)
            try:
                if work := next(filter(None, (check(instance, resources) for check in self.checks)), ""):
                    return work
                last_error = ""
            except CheckFailed as error:
                if str(error) != last_error:
                    plan_context.log.warning(f"Cannot check for new work, will try again: {error}")
                last_error = str(error)


def in_process(context: dg.InitExecutorContext) -> dg.Executor:
    """Dagster's in-process executor with these settings."""
    create = dg.in_process_executor.executor_creation_fn
    assert create
    return create(context)


@dg.executor(name="in_process", config_schema=dg.in_process_executor.config_schema.as_field())
def one_pass_executor(context: dg.InitExecutorContext) -> ContinuousExecutor:
    """Dagster's in-process executor, but a run that waits for a pool uses no CPU time and can be interrupted."""
    return ContinuousExecutor(in_process(context), AVAILABLE_NOW, ())


def continuous_executor(*checks: Check) -> dg.ExecutorDefinition:
    """The executor of a job that makes one pass, or a pass whenever one of the checks finds new work."""
    description = (
        f"`{AVAILABLE_NOW}` processes what is new, then stops. An interval, such as `30 seconds` (or minutes, hours), "
        "keeps the run going: it checks that often, and processes what is new, until you terminate it."
    )

    @dg.executor(
        name="in_process",
        config_schema={"trigger": dg.Field(str, default_value=AVAILABLE_NOW, description=description)},
    )
    def executor(context: dg.InitExecutorContext) -> ContinuousExecutor:
        steps = in_process(context._replace(executor_config={"retries": {"enabled": {}}}))
        return ContinuousExecutor(steps, str(context.executor_config["trigger"]), checks)

    return executor
