"""A small job for the run worker, in a file of its own that the worker imports by name."""

import os
import time
from pathlib import Path

import dagster as dg


@dg.op(config_schema={"seconds": dg.Field(float, default_value=0.0), "fails": dg.Field(bool, default_value=False)})
def work(context: dg.OpExecutionContext) -> None:
    """Records the process that executes it, takes some time, and fails if it is told to."""
    with Path(os.environ["PROCESSES"]).open("a") as file:
        print(os.getpid(), file=file)
    time.sleep(context.op_config["seconds"])
    if context.op_config["fails"]:
        raise ValueError("on purpose")


@dg.job(executor_def=dg.in_process_executor)
def small_job() -> None:
    """Runs the op."""
    work()
