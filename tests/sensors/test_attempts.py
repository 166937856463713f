"""A sensor requests one run per change, retries failures, and never has two runs at a time."""

import dagster as dg
import pytest

from sensors.attempts import ATTEMPTS, RequestKey, RequestState, next_request, read_state

SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
CANCELED, NOT_STARTED = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.NOT_STARTED


@dg.op
def predict(context: dg.OpExecutionContext) -> None:
    if context.run.tags.get("fails"):
        raise ValueError("no images")


@dg.job
def predict_images() -> None:
    predict()


def launch(instance: dg.DagsterInstance, key: RequestKey, *, fails: bool = False) -> None:
    """What the daemon does with a run request: the run key becomes a tag."""
    tags = {"dagster/run_key": str(key), "dagster/sensor_name": "stage_changes"}
    predict_images.execute_in_process(
        instance=instance,
        tags={**tags, "fails": "yes"} if fails else tags,
        raise_on_error=False,
    )


def state_of(instance: dg.DagsterInstance, cursor: str | None) -> RequestState:
    return read_state(instance, sensor_name="stage_changes", job_names=["predict_images"], cursor=cursor)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (RequestKey(), ".0.0"),
        (RequestKey("3-a.b", 12, 2), "3-a.b.12.2"),
        (RequestKey("one\ntwo", 1, 1), "one\ntwo.1.1"),
    ],
)
def test_a_key_survives_as_text(key: RequestKey, text: str) -> None:
    assert str(key) == text
    assert RequestKey.from_text(text) == key


@pytest.mark.parametrize("text", [None, "", "3", "a cursor of another version"])
def test_any_other_text_is_not_a_key(text: str | None) -> None:
    assert RequestKey.from_text(text) is None


@pytest.mark.parametrize(
    ("status", "attempt", "expected"),
    [
        (SUCCESS, 1, None),
        (None, 1, None),  # the run was deleted
        (FAILURE, 1, RequestKey("A", 4, 2)),
        (FAILURE, ATTEMPTS, None),
        (CANCELED, 1, None),
        (NOT_STARTED, 1, RequestKey("A", 4, 1)),  # the tick died before it launched the run
    ],
)
def test_the_same_digest_is_requested_again_only_after_a_failure(
    status: dg.DagsterRunStatus | None, attempt: int, expected: RequestKey | None
) -> None:
    request = next_request(RequestState(RequestKey("A", 4, attempt), status), "A")
    assert (request if isinstance(request, RequestKey) else None) == expected


def test_a_digest_that_comes_back_gets_a_new_key_each_time() -> None:
    key, keys = RequestKey(), []
    for digest in "ABABA":
        request = next_request(RequestState(key, SUCCESS), digest)
        assert isinstance(request, RequestKey)
        keys.append(str(key := request))
    assert len(set(keys)) == len(keys)


def test_nothing_is_requested_while_a_run_of_the_job_is_active() -> None:
    request = next_request(RequestState(RequestKey("A", 1, 1), FAILURE, active_run_id="f00"), "B")
    assert isinstance(request, str)
    assert request.startswith("Waiting for run f00 to finish.")


def test_a_run_of_the_job_counts_as_active_whoever_launched_it() -> None:
    instance = dg.DagsterInstance.ephemeral()
    run = instance.create_run_for_job(predict_images, status=dg.DagsterRunStatus.STARTING)
    assert state_of(instance, cursor=None).active_run_id == run.run_id
    instance.report_run_failed(run)
    assert state_of(instance, cursor=None).active_run_id is None


def test_a_cursor_lost_after_the_launch_is_recovered_from_the_run() -> None:
    instance, key = dg.DagsterInstance.ephemeral(), RequestKey("A", 1, 1)
    launch(instance, key)
    assert state_of(instance, cursor=None) == RequestState(key, SUCCESS)
    assert next_request(state_of(instance, cursor=None), "A") == "No changes."


@pytest.mark.parametrize("status", [FAILURE, CANCELED])
def test_a_later_success_of_the_job_settles_a_run_that_failed_or_was_canceled(status: dg.DagsterRunStatus) -> None:
    instance, key = dg.DagsterInstance.ephemeral(), RequestKey("A", 1, ATTEMPTS)
    tags = {"dagster/run_key": str(key), "dagster/sensor_name": "stage_changes"}
    instance.create_run_for_job(predict_images, status=status, tags=tags)
    assert "launch the job" in str(next_request(state_of(instance, cursor=str(key)), "A"))
    predict_images.execute_in_process(instance=instance)
    assert next_request(state_of(instance, cursor=str(key)), "A") == "No changes."


def test_a_reset_cursor_allows_new_attempts_after_failures() -> None:
    instance, key = dg.DagsterInstance.ephemeral(), RequestKey("A", 1, ATTEMPTS)
    launch(instance, key, fails=True)
    assert isinstance(next_request(state_of(instance, cursor=str(key)), "A"), str)
    assert next_request(state_of(instance, cursor=None), "A") == RequestKey("A", 2, 1)
