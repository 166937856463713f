"""Adds a hundred new images to tables of ten thousand, a hundred thousand and a million: how each step grows."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import psutil

from benchmarks.following import NEW, sizes_up_to
from benchmarks.measurement import measured
from benchmarks.ours import use_home
from benchmarks.photographs import LONG_AGO, SMALL, photograph
from benchmarks.task import read_task, timed
from benchmarks.thin_homes import THIN_HOMES, name_of, thin_home

MEBIBYTE = 1024**2


def growth(count: int, repeats: int) -> dict:
    """Runs of the job ingest_images for a hundred new files at every table size; the first run is not counted."""
    runs: dict[str, list[dict]] = {}
    for size in sizes_up_to(count):
        home, landing = thin_home(size)
        for repeat in range(repeats + 1):
            first = size + NEW * repeat
            write_new(landing, range(first, first + NEW))
            run = measured([sys.executable, "-m", "benchmarks.growth", "growth", str(landing), str(home), ""])
            if repeat:
                runs.setdefault(str(size), []).append(asdict(run))
            result = run.error or f"{run.answer['work_seconds']:.1f} s"
            print(f"growth {repeat}/{repeats}  {NEW} new files into {size:,} images: {result}", flush=True)
        shutil.rmtree(THIN_HOMES / str(size))
    return {"count": count, "new": NEW, "runs": runs}


def write_new(landing: Path, numbers: range) -> None:
    """Write photographs that differ from each other, with an old modification time."""
    for number in numbers:
        file = landing / name_of(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photograph(SMALL, number)[1])
        os.utime(file, (LONG_AGO, LONG_AGO))


class StepMeter(logging.Handler):
    """Reads the clocks and the peak memory of this process at the start and the end of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, tuple[float, float]] = {}
        self.steps: dict[str, dict[str, float]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Called with each event of the run."""
        meta = getattr(record, "dagster_meta", {})
        event, step = meta.get("dagster_event"), meta.get("step_key")
        if event is None or step is None:
            return
        if event.event_type_value == "STEP_START":
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self.started[step] = time.perf_counter(), cpu_seconds()
        elif event.event_type_value in ("STEP_SUCCESS", "STEP_FAILURE"):
            began, cpu = self.started[step]
            self.steps[step] = {
                "seconds": time.perf_counter() - began,
                "cpu_seconds": cpu_seconds() - cpu,
                "peak_megabytes": peak_bytes() / MEBIBYTE,
            }


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children, also of those that still run."""
    process = psutil.Process()
    total = sum(process.cpu_times()[:4])
    for child in process.children(recursive=True):
        total += sum(child.cpu_times()[:2])
    return total


def peak_bytes() -> int:
    """The largest resident memory of this process since the counter was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def metered() -> Iterator[tuple[dg.LoggerDefinition, StepMeter]]:
    """A Dagster logger that measures each step."""
    meter = StepMeter()

    @dg.logger(config_schema={})
    def steps(context: dg.InitLoggerContext) -> logging.Logger:
        """Measures; writes nothing."""
        logger = logging.Logger("image_assets.benchmark", level=logging.DEBUG)
        logger.addHandler(meter)
        return logger

    yield steps, meter


def main() -> None:
    """Run the job once, as the sensor requests it, and report each step."""
    task = read_task()
    home, landing = Path(task.target), Path(task.source)
    use_home(home, landing)
    from definitions import defs, resources
    from image_assets.jobs.asset_jobs import ingest_images

    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance, metered() as (logger, meter):
        everything = dg.Definitions.merge(defs, dg.Definitions(loggers={"steps": logger}))
        job = everything.resolve_job_def(ingest_images.name)
        skip = os.environ.get("GROWTH_SKIP")
        selection = [n for n in job.graph.node_dict if n not in (skip or "").split(",")] if skip else None
        config = {
            "loggers": {"steps": {}},
            "ops": {"raw_images": {"config": {"part": 0}}},
            # The files are links to one photograph: their content is not what the ledger says.
            "resources": {"image_folder": {"config": resources["image_folder"].model_dump() | {"sweep_bytes": 1}}},
        }
        with timed() as figures:
            result = job.execute_in_process(instance=instance, run_config=config, op_selection=selection)
            figures["steps"] = meter.steps
            failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
            figures["failed"] = {
                f"{check.asset_key.to_user_string()}.{check.check_name}": check.description for check in failed
            }


if __name__ == "__main__":
    main()
