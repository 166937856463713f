"""What a sensor asked for last, and whether to ask again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import dagster as dg

from image_assets.continuous import TRIGGER_TAG

ATTEMPTS = 3
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
# A run in the state NOT_STARTED may have been left by a tick that died before it launched it: it keeps nobody waiting.
ACTIVE = [status for status in dg.DagsterRunStatus if status not in (*FINISHED, dg.DagsterRunStatus.NOT_STARTED)]
RUN_KEY_TAG, SENSOR_TAG = "dagster/run_key", "dagster/sensor_name"


@dataclass(frozen=True)
class Asked:
    """What a sensor asked for last. As text it is both the sensor's cursor and the run key.

    Dagster remembers run keys for ever, those of failed runs too. `change` counts how often the digest has changed, so
    that a digest that comes back gets a new key; `attempt` gives a failed run another one.
    """

    digest: str = ""
    change: int = 0
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.digest}.{self.change}.{self.attempt}"

    @classmethod
    def from_text(cls, text: str | None) -> Self | None:
        """The reverse of `str`; None for any other text."""
        found = re.fullmatch(r"(.*)\.(\d+)\.(\d+)", text or "", re.DOTALL)
        return cls(found[1], int(found[2]), int(found[3])) if found else None

    def forgotten(self) -> Self:
        """As if the last digest had never been: whatever comes next is a change."""
        return replace(self, digest="", attempt=0)


@dataclass(frozen=True)
class Known:
    """What a sensor's next decision rests on."""

    asked: Asked
    status: dg.DagsterRunStatus | None = None  # of the run that was asked for; None when there is none
    active_run_id: str | None = None  # a run of the same work, whoever launched it
    active_trigger: str | None = None  # how often that run makes a pass; None when it makes one


def to_known(instance: dg.DagsterInstance, *, sensor_name: str, job_names: Sequence[str], cursor: str | None) -> Known:
    """What the cursor and the instance know.

    A missing cursor was lost by a tick that died after its launch, or emptied by a person. The last run stands in for
    it; unless that run failed, in which case emptying the cursor is the way to start counting attempts afresh.
    A failed run counts as done when a later run of the same work succeeded, whoever launched it.
    """
    asked = Asked.from_text(cursor)
    active = [
        run for name in job_names for run in instance.get_runs(dg.RunsFilter(job_name=name, statuses=ACTIVE), limit=1)
    ]
    own = {SENSOR_TAG: sensor_name, **({RUN_KEY_TAG: str(asked)} if asked else {})}
    records = instance.get_run_records(dg.RunsFilter(tags=own), limit=1)
    runs = [record.dagster_run for record in records]
    status = runs[0].status if runs else None
    if status is dg.DagsterRunStatus.FAILURE and succeeded_since(records[0], instance, job_names):
        status = dg.DagsterRunStatus.SUCCESS
    if asked is None:
        asked = (Asked.from_text(runs[0].tags.get(RUN_KEY_TAG)) if runs else None) or Asked()
        if status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            asked = asked.forgotten()
    run_id, trigger = (active[0].run_id, active[0].tags.get(TRIGGER_TAG)) if active else (None, None)
    return Known(asked, status, run_id, trigger)


def succeeded_since(failed: dg.RunRecord, instance: dg.DagsterInstance, job_names: Sequence[str]) -> bool:
    """Whether a run of these jobs that was made after the failed one succeeded."""
    filters = [dg.RunsFilter(job_name=name, statuses=[dg.DagsterRunStatus.SUCCESS]) for name in job_names]
    last = [record for each in filters for record in instance.get_run_records(each, limit=1)]
    return any(record.storage_id > failed.storage_id for record in last)


def next_request(known: Known, digest: str) -> Asked | str:
    """What to ask for now, or in words why nothing."""
    asked = known.asked
    if known.active_trigger:
        return f"run {known.active_run_id} goes on, looks every {known.active_trigger} and takes in what is new"
    if known.active_run_id:
        return f"waiting for run {known.active_run_id} to end; if its process is dead, terminate it in Dagster"
    if digest != asked.digest:
        return Asked(digest, asked.change + 1, attempt=1)
    if known.status is dg.DagsterRunStatus.NOT_STARTED:
        return asked  # the same key makes Dagster launch the run that it created
    if known.status is dg.DagsterRunStatus.CANCELED:
        return "the run for this was cancelled: launch the job by hand, or empty the cursor, to have it after all"
    if known.status is dg.DagsterRunStatus.FAILURE:
        if asked.attempt < ATTEMPTS:
            return replace(asked, attempt=asked.attempt + 1)
        return f"{ATTEMPTS} runs for this failed: mend what they report, then launch the job, or empty the cursor"
    return "nothing new"
