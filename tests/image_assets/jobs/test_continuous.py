"""A run makes one pass, or a pass whenever a check finds new work until it is stopped."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from image_assets.jobs.continuous import (
    CheckFailed,
    RunResources,
    continuous_executor,
    interval_seconds,
    one_pass_executor,
)
from tests.support.job_runs import TIMEOUT_SECONDS, ActiveRun, CreateJob, active_run, create_instance, execute

OTHER = "another run"
CANCELED, SUCCESS, FAILURE = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("trigger", "seconds"),
    [("available_now", None), ("1 second", 1), ("10 seconds", 10), ("1.5 minutes", 90), (" 2 hours ", 7200)],
)
def test_triggers_are_written_as_in_spark(trigger: str, seconds: float | None) -> None:
    assert interval_seconds(trigger) == seconds


@pytest.mark.parametrize("trigger", ["", "10", "0 seconds", "-1 seconds", "10 s", "availableNow", "5 days"])
def test_any_other_trigger_is_an_error_that_says_what_is_expected(trigger: str) -> None:
    with pytest.raises(dg.DagsterInvariantViolationError, match="expected available_now .* such as 10 seconds"):
        interval_seconds(trigger)


def create_job(folder: str) -> dg.JobDefinition:
    """Two assets that append to a file. Other files in the folder control what happens."""
    home = Path(folder)

    def check(instance: dg.DagsterInstance, resources: RunResources) -> str:
        if (home / "down").exists():
            raise CheckFailed("the mailbox is locked")
        if not (home / "letter").exists():
            return ""
        (home / "letter").unlink()
        return "a letter came"

    @dg.asset(pool="letters")
    def letters() -> dg.MaterializeResult:
        with (home / "letters").open("a") as file:
            file.write("letter\n")
        return dg.MaterializeResult(metadata={"rows_added": 1})

    @dg.asset(pool="answers", deps=[letters])
    def answers() -> dg.MaterializeResult:
        if (home / "broken").exists():
            raise ValueError("no ink")
        try:
            (home / "started").touch()
            while (home / "slow").exists():
                time.sleep(0.1)
        except dg.DagsterExecutionInterruptedError:
            raise OSError("as libraries do, another error") from None
        return dg.MaterializeResult(metadata={"rows_added": 0})

    job = dg.define_asset_job("write", executor_def=continuous_executor(check))
    return dg.Definitions(assets=[letters, answers], jobs=[job]).resolve_job_def("write")


def create_other_job(_: str) -> dg.JobDefinition:
    """A job without an executor of its own."""

    @dg.asset(pool="letters")
    def letters() -> None:
        """Nothing."""

    job = dg.define_asset_job("write")
    return dg.Definitions(assets=[letters], jobs=[job], executor=one_pass_executor).resolve_job_def("write")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with create_instance(tmp_path) as instance:
        yield instance


def last_status(instance: dg.DagsterInstance) -> dg.DagsterRunStatus:
    return instance.get_runs(limit=1)[0].status


@pytest.mark.parametrize("trigger", [None, "available_now"])
def test_a_batch_run_makes_one_pass(tmp_path: Path, instance: dg.DagsterInstance, trigger: str | None) -> None:
    (tmp_path / "letter").touch()
    events = execute(create_job, tmp_path, instance, trigger)
    assert [event.step_key for event in events if event.is_step_success] == ["letters", "answers"]
    assert last_status(instance) is SUCCESS


def test_an_invalid_trigger_fails_the_run_before_its_first_step(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    execute(create_job, tmp_path, instance, "soon")
    assert last_status(instance) is FAILURE
    assert not (tmp_path / "letters").exists()


def test_a_failed_step_fails_a_continuous_run_whose_steps_cannot_be_repeated_in_part(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    (tmp_path / "broken").touch()
    events = execute(create_job, tmp_path, instance, "1 second")
    assert [event.step_key for event in events if event.is_step_failure] == ["answers"]
    assert last_status(instance) is FAILURE
    again = dg.ReexecutionOptions(instance.get_runs()[0].run_id, step_selection=["letters"])
    execute(create_job, tmp_path, instance, "1 second", again)
    assert last_status(instance) is FAILURE
    assert (tmp_path / "letters").read_text() == "letter\n"


def test_new_work_starts_a_pass_and_a_signal_between_passes_cancels_the_run(tmp_path: Path) -> None:
    with active_run(create_job, tmp_path, "1 second") as run:
        run.wait_for(run.passes, "the first pass")
        before = len(run.log())
        time.sleep(2.5)
        assert len(run.log()) == before, "checks without new work leave no trace"
        (tmp_path / "down").touch()
        run.wait_for(lambda: run.has_logged("the mailbox is locked"), "a warning about the failed check")
        time.sleep(2.5)
        assert len(run.log()) == before + 1, "a failing check is logged once"
        (tmp_path / "letter").touch()
        (tmp_path / "down").unlink()
        run.wait_for(lambda: len(run.passes()) == 2, "a pass for the letter")
        assert run.passes()[1].startswith("pass 2 (a letter came): letters +1, in ")
        assert run.running_steps() == set()
        assert run.stop(signal.SIGINT) is CANCELED
    assert (tmp_path / "letters").read_text() == "letter\nletter\n"


def test_a_signal_cancels_the_run_even_if_a_library_turns_it_into_another_error(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    with active_run(create_job, tmp_path, "1 second") as run:
        run.wait_for((tmp_path / "started").exists, "the step of answers")
        assert run.running_steps() == {"answers"}
        assert run.stop(signal.SIGTERM) is CANCELED
        assert run.has_logged("Failed steps: ['answers']")
        assert run.running_steps() == set()
        (tmp_path / "slow").unlink()
        execute(create_job, tmp_path, run.instance)
        assert last_status(run.instance) is SUCCESS


@pytest.fixture
def pool_of_another_run(instance: dg.DagsterInstance) -> None:
    """Another run holds the pool of letters."""
    instance.event_log_storage.initialize_concurrency_limit_to_default("letters")
    assert instance.event_log_storage.claim_concurrency_slot("letters", OTHER, "letters").is_claimed


def blocked(run: ActiveRun) -> int:
    """How often the run had to wait for the pool."""
    return sum("blocked by limit for pool letters" in line for line in run.log())


@pytest.mark.usefixtures("pool_of_another_run")
@pytest.mark.parametrize(
    ("create", "trigger", "ended"), [(create_job, "1 second", CANCELED), (create_other_job, None, FAILURE)]
)
def test_a_run_that_waits_for_a_pool_uses_no_cpu_and_can_be_interrupted(
    tmp_path: Path, create: CreateJob, trigger: str | None, ended: dg.DagsterRunStatus
) -> None:
    with active_run(create, tmp_path, trigger) as run:
        run.wait_for(lambda: blocked(run), "waiting for the pool")
        process = psutil.Process(run.process.pid)
        before = process.cpu_times().user
        time.sleep(4)
        assert process.cpu_times().user - before < 0.3
        assert run.stop(signal.SIGINT) is ended
        pool = run.instance.event_log_storage.get_concurrency_info("letters")
        assert {step.run_id for step in pool.pending_steps} <= {OTHER}
        assert [slot.run_id for slot in pool.claimed_slots] == [OTHER]


@pytest.mark.usefixtures("pool_of_another_run")
def test_a_run_goes_on_when_the_pool_is_free_and_can_be_canceled_when_it_waits_again(tmp_path: Path) -> None:
    with active_run(create_job, tmp_path, "1 second") as run:
        storage = run.instance.event_log_storage
        run.wait_for(lambda: blocked(run), "waiting for the pool")
        storage.free_concurrency_slots_for_run(OTHER)
        run.wait_for(run.passes, "the first pass, once the pool is free")
        assert storage.claim_concurrency_slot("letters", OTHER, "letters").is_claimed
        (tmp_path / "letter").touch()
        run.wait_for(lambda: blocked(run) == 2, "waiting for the pool again")
        time.sleep(1)
        assert run.stop(signal.SIGTERM) is CANCELED


def test_a_run_that_dagster_has_marked_as_canceled_ends_before_its_next_pass(tmp_path: Path) -> None:
    with active_run(create_job, tmp_path, "1 second") as run:
        run.wait_for(run.passes, "the first pass")
        run.instance.report_run_canceled(run.instance.get_runs()[0])
        (tmp_path / "letter").touch()
        run.process.join(TIMEOUT_SECONDS)
        assert len(run.passes()) == 1
