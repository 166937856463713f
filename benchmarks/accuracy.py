"""Accuracy of each effort of training on your own photographs, and how long it takes."""

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
from benchmarks.photographs import CACHE, Photographs
from benchmarks.project_training import epochs_of
from benchmarks.recipe_training import BACKBONE
from benchmarks.task import read_task, timed

FRAMEWORKS = ("tensorflow", "torch")
EFFORTS = ("quick", "good", "best")


def accuracy(photographs: Photographs, count: int, repeats: int) -> dict:
    """Train in both frameworks with every effort, in one home, with a different seed per repeat."""
    home, _ = home_of(photographs, count)
    work = CACHE / "accuracy"
    shutil.rmtree(work, ignore_errors=True)
    runs: dict[str, dict[str, list[dict]]] = {framework: {} for framework in FRAMEWORKS}
    try:
        copied_home(home, work)
        for seed in range(repeats):
            for framework in FRAMEWORKS:
                for effort in EFFORTS:
                    run = one_run(work, framework, {"effort": effort, "seed": seed})
                    runs[framework].setdefault(effort, []).append(asdict(run))
                    print(
                        f"accuracy {seed + 1}/{repeats}  {framework}, {effort}: {run.error or run.answer}", flush=True
                    )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"count": count, "runs": runs}


def one_run(home: Path, framework: str, settings: dict[str, Any]) -> Run:
    """One training in this home, in a separate process, after the embeddings that the home lacks."""
    variables = {BACKBONE: os.environ[BACKBONE]} if BACKBONE in os.environ else {}
    kernel = json.dumps({"framework": framework, "settings": settings})
    return measured([sys.executable, "-m", "benchmarks.accuracy", "accuracy", "", str(home), kernel], variables)


def figures_of(result: dg.ExecuteInProcessResult, model: str) -> dict[str, Any]:
    """Metadata of a training and of its evaluation, and the seconds from process start to the end of each epoch."""
    from mlflow import MlflowClient

    from resources.settings import read_settings
    from scripts.runs import metadata_of

    metadata = metadata_of(result)
    trained = metadata[model]
    tracking_uri, mlflow_run_id = read_settings().tracking_uri, str(trained["mlflow_run_id"])
    started = psutil.Process().create_time()
    names = ("validation_accuracy", "epochs", "embedded_images", "seconds", "processes")
    return {
        **{name: trained[name] for name in names},
        "test_accuracy": metadata["model_evaluations"][f"test_accuracy_v{trained['model_version']}"],
        "caches_written": sum(bool(metadata[cache]["written"]) for cache in ("training_cache", "validation_cache")),
        "epoch_ends": [epoch["seconds"] for epoch in epochs_of(tracking_uri, mlflow_run_id, started)],
        "fine_tuning_seconds": [
            of.value for of in MlflowClient(tracking_uri).get_metric_history(mlflow_run_id, "fine_tuning_seconds")
        ],
    }


def main() -> None:
    """Write missing caches, train, and evaluate."""
    from image_assets.jobs.asset_jobs import CACHES, EMBEDDINGS

    task = read_task()
    training, home = json.loads(task.kernel), Path(task.target)
    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    model = f"{training['framework']}_model"
    selection = (CACHES | EMBEDDINGS | dg.AssetSelection.assets(model, "model_evaluations")).without_checks()
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance, timed() as figures:
        result = materialized(selection, instance, {"ops": {model: {"config": training["settings"]}}})
        figures |= figures_of(result, model)


if __name__ == "__main__":
    main()
