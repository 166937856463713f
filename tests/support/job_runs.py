"""Runs of jobs with their own executor, in this process or in one that can be sent signals."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import dagster as dg
import pytest

from tests.support.images import put

TIMEOUT_SECONDS = 300
STOP_SECONDS = 60  # a canceled run ends within, also on a busy machine
POOLS = "concurrency: {pools: {default_limit: 1, granularity: op}}\ntelemetry: {enabled: false}\n"
CreateJob = Callable[[str], dg.JobDefinition]  # a function of a module, which takes a folder


def create_instance(folder: Path) -> dg.DagsterInstance:
    """A Dagster instance in the folder, whose pools have one slot."""
    put(folder, "dagster.yaml", POOLS.encode())
    return dg.DagsterInstance.from_config(str(folder))


def execute(
    create_job: CreateJob,
    folder: Path,
    instance: dg.DagsterInstance,
    trigger: str | None = None,
    again: dg.ReexecutionOptions | None = None,
) -> list[dg.DagsterEvent]:
    """Executes the folder's job in this process, as a run worker does.

    Args:
        create_job: Creates the job of a folder.
        folder: The folder.
        instance: Where the run is recorded.
        trigger: The executor's setting; None for its default.
        again: Re-executes these steps of an earlier run.

    Returns:
        The run's events.
    """
    config = {"execution": {"config": {"trigger": trigger}}} if trigger else {}
    job = dg.build_reconstructable_job(create_job.__module__, create_job.__name__, (str(folder),))  # pyright: ignore[reportArgumentType]  # any tuple
    return list(dg.execute_job(job, instance, config, reexecution_options=again).all_events)


def execute_in_child(create_job: CreateJob, folder: Path, trigger: str | None) -> None:
    with create_instance(folder) as instance:
        execute(create_job, folder, instance, trigger)


@dataclass(frozen=True)
class ActiveRun:
    """A run in a process of its own, the only one of its instance."""

    instance: dg.DagsterInstance
    process: BaseProcess

    def wait_for(self, condition: Callable[[], object], description: str) -> None:
        """Waits until the condition is true; fails with the end of the log when that takes too long."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > TIMEOUT_SECONDS or not self.process.is_alive():
                pytest.fail(f"{description} did not happen:\n" + "\n".join(self.log()[-30:]))
            time.sleep(0.1)

    def log(self) -> list[str]:
        """The messages in the event log."""
        return [entry.user_message for run in self.instance.get_runs() for entry in self.instance.all_logs(run.run_id)]

    def has_logged(self, text: str) -> bool:
        return any(text in line for line in self.log())

    def passes(self) -> list[str]:
        """The log's lines about finished passes."""
        return [line for line in self.log() if line.startswith("pass ")]

    def stop(self, by: signal.Signals) -> dg.DagsterRunStatus:
        """Sends the signal, which must end the process soon; the run's last status."""
        assert self.process.pid
        os.kill(self.process.pid, by)
        self.process.join(STOP_SECONDS)
        assert not self.process.is_alive()
        return self.instance.get_runs(limit=1)[0].status

    def running_steps(self) -> set[str]:
        """The steps that hold a pool."""
        storage = self.instance.event_log_storage
        pools = [storage.get_concurrency_info(pool.name) for pool in storage.get_pool_limits()]
        return {slot.step_key for pool in pools for slot in pool.claimed_slots}


@contextmanager
def active_run(create_job: CreateJob, folder: Path, trigger: str | None) -> Iterator[ActiveRun]:
    """A run of the folder's job in a new process, which is killed if it still runs at the end of the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([create_job.__module__])  # what the module imports is imported once
    process = context.Process(target=execute_in_child, args=(create_job, folder, trigger))
    with create_instance(folder) as instance:
        process.start()
        try:
            yield ActiveRun(instance, process)
        finally:
            process.kill()
            process.join()
