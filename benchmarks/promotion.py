"""Measures the time from a promotion to the first and the last new prediction, and of a rollback."""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import dagster as dg

from benchmarks.homes import home_of
from benchmarks.measurement import ALL_CORES, Run, measured
from benchmarks.ours import copied_home, use_home
from benchmarks.photographs import CACHE, Photographs
from benchmarks.predicting import landing_in
from benchmarks.sensor import Daemon
from benchmarks.task import answer, read_task, seconds_since_start
from benchmarks.versions import FRAMEWORKS, tracking_uri_of, version_of, versions_of
from resources.mlflow.model_registry import SERVING_STAGE, ModelRegistry

FORMER, NEW = "tensorflow", "torch"  # the version with predictions for all images, and the one to promote
LEAST_IMAGES = 100  # with fewer, some split would lack a label
JOB = "predict_images"


def promotion(photographs: Photographs, count: int, repeats: int) -> dict:
    """Promote and roll back in a home with a tenth of `count` images and in one with all of them."""
    versions = versions_of(photographs)
    work = CACHE / "promotion"
    runs: dict[str, list[dict]] = {}
    shutil.rmtree(work, ignore_errors=True)
    try:
        for size in (max(count // 10, LEAST_IMAGES), count):
            predicted = work / str(size)
            copied_home(home_of(photographs, size)[0], predicted)
            prepared = program("prepare", predicted, versions)
            print(f"promotion  {size:,} images, the former version: {summary(prepared)}", flush=True)
            for repeat in range(repeats):
                copied_home(predicted, work / "home")
                run = prepared if prepared.error else program("move", work / "home", versions)
                shutil.rmtree(work / "home")
                runs.setdefault(str(size), []).append(asdict(run))
                print(f"promotion {repeat + 1}/{repeats}  {size:,} images: {summary(run)}", flush=True)
        loaded = [asdict(program("load", versions, versions)) for _ in range(repeats)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"count": count, "runs": runs, "loaded": loaded}


def summary(run: Run) -> str:
    """A run's result in one line."""
    return run.error or ", ".join(f"{name} {move['seconds']:.1f} s" for name, move in run.answer.items())


def program(task: str, home: Path, versions: Path, kernel: str = "") -> Run:
    """Run one of this file's programs in a separate process."""
    command = [sys.executable, "-m", "benchmarks.promotion", task, str(versions), str(home), kernel]
    return measured(command, {"MLFLOW_TRACKING_URI": tracking_uri_of(versions)} | ALL_CORES)


def watched(versions: Path, home: Path, *, prepare: bool) -> None:
    """Promote, let a sensor that has ticked before tick again, and report the figures of each move."""
    from resources.settings import read_settings
    from scripts.home import prepare as prepare_home
    from sensors.stage_changes import stage_changes_watching

    prepare_home(read_settings())
    registry = ModelRegistry(tracking_uri=tracking_uri_of(versions))
    for framework in FRAMEWORKS:
        registry.promote(version_of(framework, registry).version, "None")
    if not prepare:
        registry.promote(version_of(FORMER, registry).version, SERVING_STAGE)
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        daemon = Daemon(instance, stage_changes_watching(0))
        daemon.tick()
        moves = {"promotion": FORMER} if prepare else {"promotion": NEW, "rollback": FORMER}
        answer({name: moved(framework, registry, daemon, versions, home) for name, framework in moves.items()})


def moved(framework: str, registry: ModelRegistry, daemon: Daemon, versions: Path, home: Path) -> dict[str, object]:
    """Promote the framework's version, execute the run that the sensor requests, and return the moments in seconds."""
    from definitions import resources
    from image_assets.schemas import CURRENT_PREDICTIONS, FEATURED_IMAGES, IMAGE_PREDICTIONS
    from resources.delta.delta_log import changes_rows

    tables, version = resources["delta_tables"], version_of(framework, registry).version
    tables.create(IMAGE_PREDICTIONS)
    before = tables.snapshot(IMAGE_PREDICTIONS).rows
    began = time.time()
    registry.promote(version, SERVING_STAGE)
    moments = {"registry": time.time()}
    _, result = daemon.tick()
    moments["sensor"] = time.time()
    assert isinstance(result, dg.SensorResult), result
    (request,) = result.run_requests or []
    run = program("run", home, versions, json.dumps(dict(request.tags)))
    if run.error:
        raise RuntimeError(run.error)
    moments |= run.answer
    commits = [commit["timestamp"] / 1000 for commit in tables.history(IMAGE_PREDICTIONS) if changes_rows(commit)]
    if new := [moment for moment in commits if moment > began]:
        moments |= {"first": min(new), "last": max(new)}
    current = tables.read(CURRENT_PREDICTIONS, ["model_version"])["model_version"].to_pylist()
    if Counter(current) != {version: tables.snapshot(FEATURED_IMAGES).rows}:
        raise RuntimeError(
            f"current_predictions has rows by version {Counter(current)}: expected only version {version}"
        )
    moments["current"] = max(commit["timestamp"] / 1000 for commit in tables.history(CURRENT_PREDICTIONS))
    scored = tables.snapshot(IMAGE_PREDICTIONS).rows - before
    seconds = {name: moment - began for name, moment in moments.items()}
    return {"seconds": seconds["current"], "scored": scored, "moments": seconds}


def run(home: Path, tags: Mapping[str, str]) -> None:
    """Execute the job, and report the moments of its events."""
    from definitions import defs

    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        result = defs.resolve_job_def(JOB).execute_in_process(instance=instance, tags=dict(tags))
        moments: dict[str, object] = {}
        for entry in instance.all_logs(result.run_id):
            event = entry.dagster_event
            if event and event.event_type in MOMENTS:
                moments.setdefault(MOMENTS[event.event_type], entry.timestamp)
    answer(moments)


MOMENTS = {
    dg.DagsterEventType.RESOURCE_INIT_STARTED: "process",
    dg.DagsterEventType.RESOURCE_INIT_SUCCESS: "resources",
    dg.DagsterEventType.STEP_START: "step",
}


def load(registry: ModelRegistry) -> None:
    """Load the new version, as a worker without any imports does."""
    import mlflow

    mlflow.set_tracking_uri(registry.tracking_uri)
    mlflow.pyfunc.load_model(version_of(NEW, registry).uri, model_config={"device": "cpu"})
    answer({"load": {"seconds": seconds_since_start()}})


def main() -> None:
    """Prepare a home, promote versions in it, run the job, or load a version."""
    task = read_task()
    versions, home = Path(task.source), Path(task.target)
    if task.benchmark == "load":
        load(ModelRegistry(tracking_uri=tracking_uri_of(versions)))
        return
    use_home(home, landing_in(home))
    if task.benchmark == "run":
        run(home, json.loads(task.kernel))
    else:
        watched(versions, home, prepare=task.benchmark == "prepare")


if __name__ == "__main__":
    main()
