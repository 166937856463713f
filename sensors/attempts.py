"""A sensor's last run request, and whether it should request another run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import dagster as dg

from image_assets.data.raw_images import TRIGGER_TAG
from resources.run_launcher import SENSOR_TAG

ATTEMPTS = 3
UNSUCCESSFUL = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
FINISHED = (dg.DagsterRunStatus.SUCCESS, *UNSUCCESSFUL)
# NOT_STARTED does not count as active: a tick that died between creating and launching its run leaves one behind.
ACTIVE = [status for status in dg.DagsterRunStatus if status not in (*FINISHED, dg.DagsterRunStatus.NOT_STARTED)]
RUN_KEY_TAG = "dagster/run_key"


@dataclass(frozen=True)
class RequestKey:
    """Identifies a sensor's run request. As text it is both the sensor's cursor and the run key.

    Dagster never launches the same run key twice, not even after a failure. `change` counts how often the digest has
    changed, so that a digest that comes back gets a new key; `attempt` gives each retry of a failed run a new key.
    """

    digest: str = ""
    change: int = 0
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.digest}.{self.change}.{self.attempt}"

    @classmethod
    def from_text(cls, text: str | None) -> Self | None:
        """Parses the output of `str`; None for any other text."""
        match = re.fullmatch(r"(.*)\.(\d+)\.(\d+)", text or "", re.DOTALL)
        return cls(match[1], int(match[2]), int(match[3])) if match else None

    def without_digest(self) -> Self:
        """The key after there is nothing left to do: any digest counts as a change from it."""
        return replace(self, digest="", attempt=0)


@dataclass(frozen=True)
class RequestState:
    """What a sensor needs to know to decide about its next request."""

    key: RequestKey
    status: dg.DagsterRunStatus | None = None  # of the requested run; None if there is no such run
    by_another_run: bool = False  # the requested run did not succeed, but a later run of the same jobs did
    active_run_id: str | None = None  # a run of the same jobs, whoever launched it
    active_trigger: str | None = None  # how often that run makes a pass, if it is continuous


def read_state(
    instance: dg.DagsterInstance, *, sensor_name: str, job_names: Sequence[str], cursor: str | None
) -> RequestState:
    """The state of a sensor's last request, from its cursor and the instance's runs.

    The cursor can be missing because a tick died after launching its run, or because somebody reset it. The sensor's
    last run then takes its place, unless that run failed or was canceled: resetting the cursor is how to start over.

    Args:
        instance: The Dagster instance.
        sensor_name: The sensor.
        job_names: The jobs that do this sensor's work. While any of them runs, the sensor waits. A failed or canceled
            run counts as successful once a later run of any of them succeeds; that one may have done other work.
        cursor: The text of a `RequestKey`; any other text counts as missing.
    """
    key = RequestKey.from_text(cursor)
    active = [
        run for name in job_names for run in instance.get_runs(dg.RunsFilter(job_name=name, statuses=ACTIVE), limit=1)
    ]
    tags = {SENSOR_TAG: sensor_name, **({RUN_KEY_TAG: str(key)} if key else {})}
    records = instance.get_run_records(dg.RunsFilter(tags=tags), limit=1)
    runs = [record.dagster_run for record in records]
    status = runs[0].status if runs else None
    by_another_run = status in UNSUCCESSFUL and succeeded_since(records[0], instance, job_names)
    if by_another_run:
        status = dg.DagsterRunStatus.SUCCESS
    if key is None:
        key = (RequestKey.from_text(runs[0].tags.get(RUN_KEY_TAG)) if runs else None) or RequestKey()
        if status in UNSUCCESSFUL:
            key = key.without_digest()
    run_id, trigger = (active[0].run_id, active[0].tags.get(TRIGGER_TAG)) if active else (None, None)
    return RequestState(key, status, by_another_run, run_id, trigger)


def succeeded_since(unsuccessful: dg.RunRecord, instance: dg.DagsterInstance, job_names: Sequence[str]) -> bool:
    """Whether a run of these jobs, created after the unsuccessful one, succeeded."""
    filters = [dg.RunsFilter(job_name=name, statuses=[dg.DagsterRunStatus.SUCCESS]) for name in job_names]
    newest = [record for each in filters for record in instance.get_run_records(each, limit=1)]
    return any(record.storage_id > unsuccessful.storage_id for record in newest)


def next_request(state: RequestState, digest: str) -> RequestKey | str:
    """The key of the run to request now, or a sentence that says why there is none.

    Args:
        state: The sensor's last request.
        digest: The work to be done, as a string that changes whenever the work does.
    """
    key = state.key
    if state.active_trigger:
        return f"Run {state.active_run_id} is continuous and checks for changes every {state.active_trigger}."
    if state.active_run_id:
        return (
            f"Waiting for run {state.active_run_id} to finish. If its process has died, terminate the run in Dagster."
        )
    if digest != key.digest:
        return RequestKey(digest, key.change + 1, attempt=1)
    if state.status is dg.DagsterRunStatus.NOT_STARTED:
        return key  # for a key that it knows, Dagster launches the run that it already created
    if state.status is dg.DagsterRunStatus.CANCELED:
        return "The run for these changes was canceled. To try again, launch the job or reset the sensor's cursor."
    if state.status is dg.DagsterRunStatus.FAILURE:
        if key.attempt < ATTEMPTS:
            return replace(key, attempt=key.attempt + 1)
        return (
            f"{ATTEMPTS} runs failed on these changes. Fix the reported error, then launch the job or reset the "
            "sensor's cursor."
        )
    return "No changes."
