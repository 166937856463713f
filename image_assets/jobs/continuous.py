"""The executor of jobs that do what is new and stop, or go on doing so: a pass whenever there is something new."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Protocol, cast

import dagster as dg
from dagster._core.errors import raise_execution_interrupts
from dagster._core.events import EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._utils.interrupts import capture_interrupts

from image_assets.data.folder_changes import folder_changes, without_unsettled
from image_assets.data.given_labels import label_table_change
from image_assets.data.image_files import read_ledger
from image_assets.data.labels import outdated_labels
from image_assets.predictions.alert_sending import due_alerts
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import OutsideTable
from resources.delta.table_metadata import last_metadata
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import (
    ModelRegistry,
    RegistryUnavailable,
    UnclearServingVersion,
    serving_version,
    shadows,
    version_numbers,
)


class NotNow(RuntimeError):
    """Nobody can look at the moment; later perhaps."""


class Ready(Protocol):
    """The resources of a run, set up."""

    delta_tables: DeltaTables
    image_folder: ImageFolder
    label_table: OutsideTable
    model_registry: ModelRegistry


News = Callable[[dg.DagsterInstance, Ready], str]  # in words; empty when there is none


def news_of_files(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether files landed, changed or left since they were last ingested."""
    try:
        found = folder_changes(ready.image_folder, read_ledger(ready.delta_tables), part=None)
    except FileNotFoundError as error:
        raise NotNow(str(error)) from error
    changes = without_unsettled(found, ready.image_folder)
    return str(changes) if changes.digest() else ""


def news_of_labels(instance: dg.DagsterInstance, ready: Ready) -> str:
    """Whether the label table is another one than was last read."""
    try:
        found = label_table_change(instance, ready.label_table)
    except FileNotFoundError as error:
        raise NotNow(str(error)) from error
    return f"the label table: {found}" if found else ""


def news_of_corrections(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether a label was corrected that featured_images does not have yet."""
    found = outdated_labels(ready.delta_tables, FEATURED_IMAGES)
    return f"{len(found)} corrected labels" if found else ""


def news_to_predict(instance: dg.DagsterInstance, ready: Ready) -> str:
    """Whether another version serves, or featured_images has other rows, than when predictions were last made."""
    try:
        versions = ready.model_registry.versions()
        serving, beside = serving_version(versions), version_numbers(shadows(versions))
    except (RegistryUnavailable, UnclearServingVersion) as error:
        raise NotNow(str(error)) from error
    before = last_metadata(instance, "image_predictions")
    if before.get("serving_version") != (str(serving.version) if serving else "none"):
        return f"version {serving.version} serves" if serving else "no version serves"
    if before.get("shadow_versions") != beside:
        return f"in Staging: {beside}"
    if (serving, beside) == (None, "none"):
        return ""
    images = ready.delta_tables.last_change(FEATURED_IMAGES)
    return "" if before.get("featured_images_version") == images else "featured_images has new rows"


def news_of_alerts(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether alerts wait that it is time to send, or to send again."""
    return due_alerts(ready.delta_tables, datetime.now(UTC))


def either(first: News, second: News) -> News:
    """The first news, or the second where the first has none."""
    return lambda instance, ready: first(instance, ready) or second(instance, ready)


# An executor is not part of Dagster's public API. What is used here is what Dagster's in-process executor is made of;
# Dagster's version is pinned, and a test compares the events of one pass with those of the in-process executor.


AVAILABLE_NOW = "available_now"
TRIGGER_TAG = "image_assets/trigger"
SECONDS = {"second": 1, "minute": 60, "hour": 3600}
POOL_SECONDS = 1.0  # between two tries to get a pool that another run holds
INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def interval_seconds(trigger: str) -> float | None:
    """The seconds between two looks for something new; None for one pass."""
    if trigger == AVAILABLE_NOW:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) (second|minute|hour)s?", trigger.strip())
    if found is None or float(found[1]) == 0:
        raise dg.DagsterInvariantViolationError(
            f"trigger is {trigger!r}: expected {AVAILABLE_NOW}, for one pass, or a time between passes, "
            "such as 10 seconds, 5 minutes or 1 hour"
        )
    return float(found[1]) * SECONDS[found[2]]


class Pools(InstanceConcurrencyContext):
    """The pools that a run claims. Waiting for one takes no CPU, and ends when the run is cancelled.

    The in-process executor of Dagster 1.13 asks without a pause, and hears of no cancellation meanwhile.
    """

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Whether the step got the pool."""
        claimed = super().claim(concurrency_key, step_key, step_priority)
        if not claimed:
            with raise_execution_interrupts():
                time.sleep(POOL_SECONDS)
        return claimed


def one_pass(job_context: PlanExecutionContext, execution_plan: ExecutionPlan) -> Iterator[dg.DagsterEvent]:
    """Every step of the plan in order, each under its pool."""
    with Pools(job_context.instance, job_context.dagster_run) as pools:
        yield from inner_plan_execution_iterator(job_context, execution_plan, pools)


def many_passes(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan, *, trigger: str, news: News
) -> Iterator[dg.DagsterEvent]:
    """A pass, and another one whenever a look finds something new, until a step fails or the run is cancelled."""
    if {step.key for step in execution_plan.steps} != set(execution_plan.step_keys_to_execute):
        raise dg.DagsterInvariantViolationError(
            f"a continuous run repeats all steps of its job, and was asked for {execution_plan.step_keys_to_execute}: "
            f"launch the job instead of re-executing a part of it, or choose the trigger {AVAILABLE_NOW}"
        )
    job_context.instance.add_run_tags(job_context.run_id, {TRIGGER_TAG: trigger})
    job_context.log.info(
        f"continuous: a first pass now, then a look every {trigger} and a pass when there is something new. "
        "To stop, terminate the run; the next one goes on where this one was"
    )
    found = "as at every start"
    for number in count(1):
        started, failed, added = time.monotonic(), False, []
        for event in one_pass(job_context, execution_plan):
            yield event
            failed = failed or event.is_step_failure
            added += rows_added(event)
        if failed:  # its event says why; the run ends as a batch run does
            return
        seconds = time.monotonic() - started
        job_context.log.info(f"pass {number} ({found}): {', '.join(added) or 'no new rows'}, in {seconds:.0f} s")
        found = next_news(job_context, news, started=started, every=interval_seconds(trigger) or 0)


def rows_added(event: dg.DagsterEvent) -> list[str]:
    """The table and its new rows, when the event says that a table got some or lost some."""
    if not event.is_step_materialization:
        return []
    materialization = event.step_materialization_data.materialization
    rows = materialization.metadata.get("rows_added")
    return [f"{materialization.asset_key.to_user_string()} {rows.value:+,}"] if rows and rows.value else []


def next_news(job_context: PlanExecutionContext, news: News, *, started: float, every: float) -> str:
    """What is new, as soon as there is something; where one cannot look now, that is said once and tried again."""
    resources = job_context.scoped_resources_builder
    ready = cast(Ready, resources.build(set(resources.resource_instance_dict)))  # Dagster makes its class at run time
    trouble = ""
    with raise_execution_interrupts():
        while True:
            time.sleep(max(0.0, started + every - time.monotonic()))
            started = time.monotonic()
            require_going_on(job_context)
            try:
                found = news(job_context.instance, ready)
                trouble = ""
            except NotNow as error:
                found = ""
                if str(error) != trouble:
                    job_context.log.warning(f"cannot look for anything new, and will try again: {error}")
                trouble = str(error)
            if found:
                return found


def require_going_on(job_context: PlanExecutionContext) -> None:
    """Interrupt a run that has been declared over, or was asked to end by a signal that never came."""
    dagster_run = job_context.instance.get_run_by_id(job_context.run_id)
    if dagster_run is None or dagster_run.status is not dg.DagsterRunStatus.STARTED:
        raise dg.DagsterExecutionInterruptedError("Dagster says that this run is over")


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """A function that says whether a signal that stops came during the block since it was last asked.

    What a signal raises may come out of a library's code as another error: then only the signal tells why.
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
            yield partial(stop_signal_in, receiver)
        finally:
            signal.set_wakeup_fd(before)


def stop_signal_in(receiver: socket.socket) -> bool:
    """Whether one of the signals that were noted and not read yet is to stop the run."""
    try:
        return not STOP_SIGNALS.isdisjoint(receiver.recv(4096))
    except BlockingIOError:  # none was noted
        return False


def announce_cancellation(instance: dg.DagsterInstance, run_id: str) -> None:
    """Tell Dagster that the run is being cancelled: it takes a signal that nobody announced for a crash."""
    dagster_run = instance.get_run_by_id(run_id)
    if dagster_run and dagster_run.status is dg.DagsterRunStatus.STARTED:
        instance.report_run_canceling(dagster_run, "A signal asks this continuous run to end.")


class ContinuousExecutor(InProcessExecutor):
    """Dagster's in-process executor around one pass or many: resources are set up once for all of them."""

    def __init__(self, trigger: str, news: News) -> None:
        super().__init__(RetryMode.ENABLED)
        self.continuous = interval_seconds(trigger) is not None
        self.passes = partial(many_passes, trigger=trigger, news=news) if self.continuous else one_pass

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """The run's events between its start and its end."""
        in_process = EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute)
        yield dg.DagsterEvent.engine_event(plan_context, f"Executing steps in process (pid: {os.getpid()})", in_process)
        started = time.monotonic()
        yield from ExecuteRunWithPlanIterable(
            execution_plan=plan_context.execution_plan,
            iterator=self.interruptible,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=plan_context.execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self.step_dependency_config,
            ),
        )
        message = f"Finished steps in process (pid: {os.getpid()}) in {time.monotonic() - started:.2f}s"
        yield dg.DagsterEvent.engine_event(plan_context, message, in_process)

    def interruptible(
        self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """The passes. However they end, no pool stays claimed, and a signal to a continuous run cancels it."""
        instance, run_id = job_context.instance, job_context.run_id
        try:
            # pyspark has put a handler of its own in Dagster's place, which interrupts also where nothing is safe.
            with signals_noted() as stop_asked, capture_interrupts():
                try:
                    yield from self.passes(job_context, execution_plan)
                finally:
                    if self.continuous and (stop_asked() or isinstance(sys.exception(), INTERRUPTS)):
                        announce_cancellation(instance, run_id)
        finally:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def continuous_executor(news: News) -> dg.ExecutorDefinition:
    """The executor of a job: one pass, or a pass whenever there is news of what the job takes in."""
    description = (
        f"`{AVAILABLE_NOW}` does what is new and stops. A time, such as `30 seconds` (or minutes, hours), goes on: it "
        "looks that often, and makes another pass when there is something new, until the run is terminated."
    )

    @dg.executor(
        name="in_process",
        config_schema={"trigger": dg.Field(str, default_value=AVAILABLE_NOW, description=description)},
    )
    def executor(context: dg.InitExecutorContext) -> ContinuousExecutor:
        return ContinuousExecutor(str(context.executor_config["trigger"]), news)

    return executor
