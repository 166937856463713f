"""How accurate versions of every kind of training are on photographs of one's own, and how long each training takes."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from benchmarks.homes import home_of
from benchmarks.measurement import Run, measured
from benchmarks.ours import copied_home, materialized, start_spark, use_home
from benchmarks.own_training import epochs_of
from benchmarks.photographs import CACHE, Photographs
from benchmarks.recipe_training import BACKBONE
from benchmarks.task import read_task, timed

FRAMEWORKS = ("tensorflow", "torch")
KINDS: dict[str, dict[str, Any]] = {
    "head": {},
    "top blocks": {"trainable": "top_blocks"},
    "top blocks, augmented": {"trainable": "top_blocks", "augmentation": True},
}


def accuracy(photographs: Photographs, count: int, repeats: int) -> dict:
    """Trainings of every kind by both frameworks in one home, each repeat by another seed, with default settings."""
    home, _ = home_of(photographs, count)
    work = CACHE / "accuracy"
    shutil.rmtree(work, ignore_errors=True)
    runs: dict[str, dict[str, list[dict]]] = {framework: {} for framework in FRAMEWORKS}
    try:
        copied_home(home, work)
        for seed in range(repeats):
            for framework in FRAMEWORKS:
                for kind, settings in KINDS.items():
                    run = one_run(work, framework, {**settings, "seed": seed})
                    runs[framework].setdefault(kind, []).append(asdict(run))
                    told = run.error or run.answer
                    print(f"accuracy {seed + 1}/{repeats}  {framework}, {kind}: {told}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"count": count, "runs": runs}


def one_run(home: Path, framework: str, settings: dict[str, Any]) -> Run:
    """One training in this home, in a process of its own; what it keeps is there for the next one."""
    asked = {BACKBONE: os.environ[BACKBONE]} if BACKBONE in os.environ else {}
    kernel = json.dumps({"framework": framework, "settings": settings})
    return measured([sys.executable, "-m", "benchmarks.accuracy", "accuracy", "", str(home), kernel], asked)


def figures_of(result: dg.ExecuteInProcessResult, model: str) -> dict[str, Any]:
    """What a training and the evaluation of its version told; seconds from this process's start to each epoch's end."""
    from mlflow import MlflowClient

    from resources.settings import read_settings
    from scripts.runs import metadata_of

    told = metadata_of(result)
    trained = told[model]
    tracking_uri, mlflow_run_id = read_settings().tracking_uri, str(trained["mlflow_run_id"])
    started = psutil.Process().create_time()
    names = ("validation_accuracy", "epochs", "embedded_images", "seconds", "processes")
    return {
        **{name: trained[name] for name in names},
        "test_accuracy": told["model_evaluations"][f"test_accuracy_v{trained['model_version']}"],
        "caches_written": sum(bool(told[cache]["written"]) for cache in ("training_cache", "validation_cache")),
        "epoch_ends": [epoch["seconds"] for epoch in epochs_of(tracking_uri, mlflow_run_id, started)],
        "fine_tuning_seconds": [
            of.value for of in MlflowClient(tracking_uri).get_metric_history(mlflow_run_id, "fine_tuning_seconds")
        ],
    }


def main() -> None:
    """Write the caches where there are none, train, evaluate."""
    from image_assets.jobs.asset_jobs import CACHES

    task = read_task()
    asked, home = json.loads(task.kernel), Path(task.target)
    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    model = f"{asked['framework']}_model"
    selection = (CACHES | dg.AssetSelection.assets(model, "model_evaluations")).without_checks()
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance, timed() as told:
        result = materialized(selection, instance, {"ops": {model: {"config": asked["settings"]}}})
        told |= figures_of(result, model)


if __name__ == "__main__":
    main()
