"""This project's training, from caches to the accuracy of the last epoch, and the home with these caches."""

import importlib
import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import dagster as dg

from benchmarks.measurement import measured
from benchmarks.ours import copied_home, materialized, start_spark, use_home
from benchmarks.recipe_training import BACKBONE, cache_in, labels_in
from benchmarks.task import answer, read_task, timed
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.spark_session import DeltaSpark
from resources.training import BackboneWeights


def caches_of(home: Path, target: Path) -> None:
    """Copy a home, and write its training and validation caches for one process, and its embeddings."""
    copied_home(home, target)
    run = measured([sys.executable, "-m", "benchmarks.project_training", "caches", "", str(target), ""])
    if run.error:
        raise RuntimeError(f"writing the caches and embeddings of {home.name} failed: {run.error}")


def write_caches(home: Path) -> None:
    """Write the home's caches, and embeddings by the recipe's network."""
    from image_assets.jobs.asset_jobs import CACHES
    from image_assets.models.backbones import MOBILENET_V2_LEVELS
    from image_assets.models.image_embeddings import current_networks, follow_featured_images

    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    with timed(), dg.DagsterInstance.ephemeral() as instance:
        materialized(CACHES.without_checks(), instance)
        weights = BackboneWeights(source=os.environ.get(BACKBONE, "auto"))
        networks, _ = current_networks(PetastormCaches(root=f"{home}/caches"), weights, MOBILENET_V2_LEVELS)
        for network in networks:
            follow_featured_images(DeltaTables(pyspark=DeltaSpark(spark_config={}), root=f"{home}/tables"), network)


def mlflow_run_in(folder: Path) -> tuple[str, str]:
    """The tracking URI of a new MLflow store, and the id of a new run in it."""
    import mlflow

    from resources.mlflow.mlflow_tracking import create_store

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    create_store(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(uuid4().hex, artifact_location=(folder / "mlartifacts").as_uri())
    return uri, client.create_run(experiment).info.run_id


def train(framework: str, seed: int, home: str, store: str, tracking_uri: str, mlflow_run_id: str) -> None:
    """Train once in this process on the recipe's network, and log the epochs to the MLflow run.

    With seed 0, the embeddings are computed in memory, as if the home had none.
    """
    from image_assets.models.backbones import MOBILENET_V2_LEVELS
    from image_assets.models.frameworks import FRAMEWORKS
    from image_assets.models.stored_embeddings import embedding_files
    from image_assets.models.training_config import TrainingConfig
    from image_assets.models.training_plan import OutputLocations

    training, validation = cache_in(home, "training"), cache_in(home, "validation")
    backbone = os.environ.get(BACKBONE, "auto")
    config = TrainingConfig(seed=seed, backbone=MOBILENET_V2_LEVELS.name)
    plan = config.plan(labels_in(training), backbone, PetastormCaches(root=f"{home}/caches"))
    tables = DeltaTables(pyspark=DeltaSpark(spark_config={}), root=f"{home}/tables")
    embeddings = embedding_files(tables) if seed else ()
    locations = OutputLocations(tracking_uri, mlflow_run_id, embeddings, f"{store}/checkpoints/{mlflow_run_id}")
    FRAMEWORKS[framework].training.train(training.converter(), validation.converter(), plan, locations)


def epochs_of(tracking_uri: str, mlflow_run_id: str, started: float) -> list[dict[str, float]]:
    """The seconds from `started` to the end of each epoch, and its validation accuracy."""
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri).get_metric_history(mlflow_run_id, "validation_accuracy")
    return [{"seconds": of.timestamp / 1000 - started, "validation_accuracy": of.value} for of in history]


def main() -> None:
    """Write the caches of a home, or train; the kernel is `framework:seed`."""
    task = read_task()
    if task.benchmark == "caches":
        write_caches(Path(task.target))
        return
    framework, _, seed = task.kernel.partition(":")
    import_framework(framework)
    run = mlflow_run_in(Path(task.target))
    started = time.time()
    train(framework, int(seed), task.source, task.target, *run)
    ended = time.time()
    epochs = epochs_of(*run, started)
    answer({"work_seconds": epochs[-1]["seconds"], "epochs": epochs, "logged_seconds": ended - started})


def import_framework(framework: str) -> None:
    """Import what training imports, so that startup includes it."""
    for name in (framework, f"horovod.{framework}", f"mlflow.{'pytorch' if framework == 'torch' else framework}"):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
