"""One pass is Dagster's in-process executor; many are made when there is news, and end when they are told to."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run_iterator

from image_assets.jobs.continuous import NotNow, Ready, continuous_executor, interval_seconds
from tests.support.runs_apart import PATIENCE_SECONDS, Going, apart, run_here, to_instance

CANCELED = dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize(
    ("trigger", "seconds"),
    [
        ("available_now", None),
        ("1 second", 1),
        ("10 seconds", 10),
        ("1.5 minutes", 90),
        (" 2 hours ", 7200),
    ],
)
def test_a_trigger_is_written_as_spark_writes_it(trigger: str, seconds: float | None) -> None:
    assert interval_seconds(trigger) == seconds


@pytest.mark.parametrize("trigger", ["", "10", "0 seconds", "-1 seconds", "10 s", "availableNow", "5 days"])
def test_another_trigger_is_refused_with_what_it_may_be(trigger: str) -> None:
    with pytest.raises(dg.DagsterInvariantViolationError, match="expected available_now, .* such as 10 seconds"):
        interval_seconds(trigger)


def to_job(folder: Path, executor: dg.ExecutorDefinition | None = None) -> dg.JobDefinition:
    """Two assets that keep count of their materializations. Files in the folder say what happens to them."""

    def news(instance: dg.DagsterInstance, ready: Ready) -> str:
        if (folder / "down").exists():
            raise NotNow("nobody answers")
        if not (folder / "letter").exists():
            return ""
        (folder / "letter").unlink()
        return "a letter came"

    @dg.asset(pool="letters")
    def letters() -> dg.MaterializeResult:
        with (folder / "kept").open("a") as kept:
            kept.write("letter\n")
        return dg.MaterializeResult(metadata={"rows_added": 1})

    @dg.asset(pool="answers", deps=[letters])
    def answers() -> dg.MaterializeResult:
        if (folder / "broken").exists():
            raise ValueError("no ink")
        try:
            (folder / "at_work").touch()
            while (folder / "slow").exists():
                time.sleep(0.1)
        except dg.DagsterExecutionInterruptedError as interrupt:
            raise (OSError("the pen broke") if (folder / "fragile").exists() else interrupt) from None
        return dg.MaterializeResult(metadata={"rows_added": 0})

    job = dg.define_asset_job("write", executor_def=executor or continuous_executor(news))
    return dg.Definitions(assets=[letters, answers], jobs=[job]).resolve_job_def("write")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with to_instance(tmp_path) as instance:
        yield instance


@pytest.fixture
def going(tmp_path: Path, instance: dg.DagsterInstance) -> Iterator[Going]:
    """The job of `to_job`, which looks every second."""
    with apart(__name__, f"to_job(Path({str(tmp_path)!r}))", tmp_path, "1 second") as process:
        yield Going(instance, process)


def test_one_pass_has_the_events_of_the_in_process_executor(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    def outline(events: list[dg.DagsterEvent]) -> list[tuple[str, str | None]]:
        return [(event.event_type_value, event.step_key) for event in events]

    in_process = run_here(to_job(tmp_path, dg.in_process_executor), instance)
    assert in_process[-1].event_type is dg.DagsterEventType.RUN_SUCCESS
    assert outline(run_here(to_job(tmp_path), instance)) == outline(in_process)
    assert outline(run_here(to_job(tmp_path), instance, "available_now")) == outline(in_process)


def test_the_launchpad_begins_with_one_pass(tmp_path: Path) -> None:
    fields = to_job(tmp_path).run_config_schema.run_config_schema_type.fields  # pyright: ignore[reportAttributeAccessIssue]
    assert fields["execution"].default_value == {"config": {"trigger": "available_now"}}


def test_a_part_of_a_job_is_not_repeated(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    job = to_job(tmp_path)
    config = {"execution": {"config": {"trigger": "1 second"}}}
    plan = create_execution_plan(InMemoryJob(job), config, step_keys_to_execute=["answers"])
    dagster_run = instance.create_run_for_job(job, execution_plan=plan, run_config=config)
    events = list(execute_run_iterator(InMemoryJob(job), dagster_run, instance))
    assert events[-1].event_type is dg.DagsterEventType.RUN_FAILURE
    assert not (tmp_path / "kept").exists()


def test_an_unknown_trigger_fails_the_run_before_any_step(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    events = run_here(to_job(tmp_path), instance, "soon")
    assert [event.event_type for event in events] == [dg.DagsterEventType.RUN_FAILURE]
    error = events[0].job_failure_data.error
    assert error is not None
    assert "trigger is 'soon'" in error.message


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_pass_is_made_for_news_and_none_without(going: Going, tmp_path: Path, by: signal.Signals) -> None:
    going.wait_for(going.passes, "a first pass")
    events = len(going.said())
    time.sleep(3)
    assert len(going.said()) == events
    (tmp_path / "letter").touch()
    going.wait_for(lambda: len(going.passes()) == 2, "a pass for the letter")
    assert going.passes()[1].startswith("pass 2 (a letter came): letters +1, in ")
    assert going.steps_at_work() == set()
    assert going.stop(by) is CANCELED
    assert (tmp_path / "kept").read_text().count("letter") == 2


def test_a_step_that_is_cancelled_gives_its_pool_back(going: Going, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    going.wait_for(lambda: going.steps_at_work() == {"answers"}, "the step of answers")
    assert going.stop(signal.SIGTERM) is CANCELED
    assert going.steps_at_work() == set()
    (tmp_path / "slow").unlink()
    assert run_here(to_job(tmp_path), going.instance)[-1].event_type is dg.DagsterEventType.RUN_SUCCESS


def test_a_signal_cancels_also_where_a_library_makes_another_error_of_it(going: Going, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    (tmp_path / "fragile").touch()
    going.wait_for((tmp_path / "at_work").exists, "answers at work: its step alone may have begun with nothing yet")
    assert going.stop(signal.SIGTERM) is CANCELED
    assert going.says("Failed steps: ['answers']")


def test_a_run_that_waits_for_a_pool_takes_no_time_and_can_be_cancelled(
    tmp_path: Path, instance: dg.DagsterInstance, request: pytest.FixtureRequest
) -> None:
    instance.event_log_storage.initialize_concurrency_limit_to_default("letters")
    assert instance.event_log_storage.claim_concurrency_slot("letters", "another run", "letters").is_claimed
    going: Going = request.getfixturevalue("going")
    going.wait_for(lambda: going.says("blocked by limit for pool letters"), "waiting for the pool")
    process = psutil.Process(going.process.pid)
    before = process.cpu_times().user
    time.sleep(4)
    assert process.cpu_times().user - before < 2
    assert going.stop(signal.SIGTERM) is CANCELED
    info = instance.event_log_storage.get_concurrency_info("letters")
    assert [slot.run_id for slot in info.claimed_slots] == ["another run"]
    assert {step.run_id for step in info.pending_steps} <= {"another run"}


def test_a_run_that_dagster_was_told_is_over_ends_before_its_next_pass(going: Going, tmp_path: Path) -> None:
    going.wait_for(going.passes, "a first pass")
    going.instance.report_run_canceled(going.instance.get_runs()[0])
    (tmp_path / "letter").touch()
    going.process.wait(PATIENCE_SECONDS)
    assert len(going.passes()) == 1


def test_a_failing_step_fails_the_run(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    (tmp_path / "broken").touch()
    events = run_here(to_job(tmp_path), instance, "1 second")
    assert events[-1].event_type is dg.DagsterEventType.RUN_FAILURE
    assert [event.step_key for event in events if event.is_step_failure] == ["answers"]


def test_where_nobody_can_look_it_is_said_once_and_tried_again(going: Going, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    going.wait_for(lambda: going.says("nobody answers"), "a warning")
    time.sleep(2.5)
    assert sum("nobody answers" in line for line in going.said()) == 1
    (tmp_path / "letter").touch()
    (tmp_path / "down").unlink()
    going.wait_for(lambda: len(going.passes()) == 2, "a pass for the letter")
