"""Runs of jobs in this process and in processes of their own, and what the tests see of them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator

from tests.support.images import put

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300
SOON_SECONDS = 60  # a cancelled run ends within, also on a busy machine
POOLS = "concurrency: {pools: {default_limit: 1, granularity: op}}\ntelemetry: {enabled: false}\n"


def run_here(job: dg.JobDefinition, instance: dg.DagsterInstance, trigger: str | None = None) -> list[dg.DagsterEvent]:
    """Run the job in this process, as Dagster runs a job whose run was launched; its events."""
    config = {"execution": {"config": {"trigger": trigger}}} if trigger else {}
    dagster_run = instance.create_run_for_job(job, run_config=config)
    return list(execute_run_iterator(InMemoryJob(job), dagster_run, instance))


def to_instance(folder: Path) -> dg.DagsterInstance:
    """The Dagster instance of a folder, whose pools have one slot."""
    put(folder, "dagster.yaml", POOLS.encode())
    return dg.DagsterInstance.from_config(str(folder))


@contextmanager
def apart(module: str, job: str, folder: Path, trigger: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that runs the module's job; killed when it is still there at the end of the block."""
    program = (
        f"from pathlib import Path; from {module} import *; from {__name__} import *; "
        f"run_here({job}, to_instance(Path({str(folder)!r})), {trigger!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Going:
    """A run in a process of its own, the only one of its instance."""

    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Look again until it is so; the log, when it takes too long."""
        since = time.monotonic()
        while not condition():
            if time.monotonic() - since > PATIENCE_SECONDS or self.process.poll() is not None:
                pytest.fail(f"{what}: not seen in\n" + "\n".join(self.said()[-30:]))
            time.sleep(0.1)

    def run_id(self) -> str:
        return self.instance.get_run_records(limit=1)[0].dagster_run.run_id

    def said(self) -> list[str]:
        """What the event log says, line by line."""
        return [entry.user_message for run in self.instance.get_runs() for entry in self.instance.all_logs(run.run_id)]

    def says(self, words: str) -> bool:
        return any(words in line for line in self.said())

    def passes(self) -> list[str]:
        return [line for line in self.said() if line.startswith("pass ")]

    def stop(self, by: signal.Signals) -> dg.DagsterRunStatus:
        """Send the signal; how the run ended, and soon."""
        since = time.monotonic()
        self.process.send_signal(by)
        self.process.wait(PATIENCE_SECONDS)
        assert time.monotonic() - since < SOON_SECONDS
        dagster_run = self.instance.get_run_by_id(self.run_id())
        assert dagster_run is not None
        return dagster_run.status

    def steps_at_work(self) -> set[str]:
        """The steps that have a pool."""
        storage = self.instance.event_log_storage
        pools = [storage.get_concurrency_info(pool.name) for pool in storage.get_pool_limits()]
        return {slot.step_key for pool in pools for slot in pool.claimed_slots}
