"""A sensor asks once for each change, again for a failure, and never twice at a time."""

import dagster as dg
import pytest

from sensors.attempts import ATTEMPTS, Asked, Known, next_request, to_known

SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
CANCELED, NOT_STARTED = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.NOT_STARTED


@dg.op
def predict(context: dg.OpExecutionContext) -> None:
    if context.run.tags.get("fails"):
        raise ValueError("no images")


@dg.job
def predict_images() -> None:
    predict()


def launch(instance: dg.DagsterInstance, asked: Asked, *, fails: bool = False) -> None:
    """What the daemon does with a run request: the run key becomes a tag."""
    tags = {"dagster/run_key": str(asked), "dagster/sensor_name": "stage_changes"}
    predict_images.execute_in_process(
        instance=instance,
        tags={**tags, "fails": "yes"} if fails else tags,
        raise_on_error=False,
    )


def known_to(instance: dg.DagsterInstance, cursor: str | None) -> Known:
    return to_known(instance, sensor_name="stage_changes", job_names=["predict_images"], cursor=cursor)


@pytest.mark.parametrize("asked", [Asked(), Asked("3-a.b", 12, 2), Asked("one\ntwo", 1, 1)])
def test_what_was_asked_survives_as_text(asked: Asked) -> None:
    assert Asked.from_text(str(asked)) == asked


@pytest.mark.parametrize("text", [None, "", "3", "a cursor of another version"])
def test_any_other_text_is_no_memory(text: str | None) -> None:
    assert Asked.from_text(text) is None


@pytest.mark.parametrize(
    ("status", "attempt", "expected"),
    [
        (SUCCESS, 1, None),
        (None, 1, None),  # the run was deleted
        (FAILURE, 1, Asked("A", 4, 2)),
        (FAILURE, ATTEMPTS, None),
        (CANCELED, 1, None),
        (NOT_STARTED, 1, Asked("A", 4, 1)),  # the tick died before it launched the run
    ],
)
def test_the_same_digest_is_asked_for_again_only_after_a_failure(
    status: dg.DagsterRunStatus | None, attempt: int, expected: Asked | None
) -> None:
    request = next_request(Known(Asked("A", 4, attempt), status), "A")
    assert (request if isinstance(request, Asked) else None) == expected


def test_a_digest_that_comes_back_gets_a_new_key_each_time() -> None:
    asked, keys = Asked(), []
    for digest in "ABABA":
        request = next_request(Known(asked, SUCCESS), digest)
        assert isinstance(request, Asked)
        keys.append(str(asked := request))
    assert len(set(keys)) == len(keys)


def test_nothing_is_asked_for_while_a_run_of_the_job_goes_on() -> None:
    request = next_request(Known(Asked("A", 1, 1), FAILURE, active_run_id="f00"), "B")
    assert isinstance(request, str)
    assert request.startswith("waiting for run f00 to end")


def test_a_run_of_the_job_counts_as_active_whoever_launched_it() -> None:
    instance = dg.DagsterInstance.ephemeral()
    run = instance.create_run_for_job(predict_images, status=dg.DagsterRunStatus.STARTING)
    assert known_to(instance, cursor=None).active_run_id == run.run_id
    instance.report_run_failed(run)
    assert known_to(instance, cursor=None).active_run_id is None


def test_a_cursor_lost_after_the_launch_is_found_again_in_the_run() -> None:
    instance, asked = dg.DagsterInstance.ephemeral(), Asked("A", 1, 1)
    launch(instance, asked)
    assert known_to(instance, cursor=None) == Known(asked, SUCCESS)
    assert next_request(known_to(instance, cursor=None), "A") == "nothing new"


def test_an_emptied_cursor_starts_the_attempts_afresh_after_failures() -> None:
    instance, asked = dg.DagsterInstance.ephemeral(), Asked("A", 1, ATTEMPTS)
    launch(instance, asked, fails=True)
    assert isinstance(next_request(known_to(instance, cursor=str(asked)), "A"), str)
    assert next_request(known_to(instance, cursor=None), "A") == Asked("A", 2, 1)
