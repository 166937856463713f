"""Model versions of both frameworks, trained and registered once, and exported for other contestants.

They are stored in a separate home and reused as long as the code that trained them is unchanged.
"""

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import cast

import dagster as dg

from benchmarks.homes import code_digest, home_of
from benchmarks.measurement import ROOT, measured
from benchmarks.ours import copied_home, materialized, start_spark, use_home
from benchmarks.photographs import CACHE, Photographs
from benchmarks.predicting import BATCH_IMAGES, LABELS, ONNX, RECIPE_MODEL, SIDE_PIXELS, TORCHSCRIPT
from benchmarks.recipe_training import BACKBONE
from benchmarks.task import read_task, timed
from image_assets.models.backbones import MOBILENET_V2
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

VERSIONS = CACHE / "versions"
TRAINED_IMAGES = 600
FRAMEWORKS = ("tensorflow", "torch")  # in the order of their versions
OTHERS = "others"  # the folder with the exports for other contestants


def versions_of(photographs: Photographs) -> Path:
    """The home of the versions. Do not modify anything in it except the stages."""
    backbone = os.environ.get(BACKBONE, "auto")
    code = sorted((ROOT / "image_assets" / "models").glob("*.py"))
    digest = sha256(b"\0".join([backbone.encode(), code_digest().encode(), *(file.read_bytes() for file in code)]))
    name = f"{photographs.folder.name}-{digest.hexdigest()[:10]}"
    finished = VERSIONS / f"{name}.finished"
    if not finished.exists():
        print("training the model versions (only once)", flush=True)
        home, _ = home_of(photographs, TRAINED_IMAGES)
        for old in VERSIONS.glob(f"{photographs.folder.name}-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        copied_home(home, VERSIONS / name)
        command = [sys.executable, "-m", "benchmarks.versions", "train", "", str(VERSIONS / name), ""]
        run = measured(command, {BACKBONE: backbone, "IMAGE_ASSETS_PROCESSES": "1"})
        if run.error:
            raise RuntimeError(f"training the model versions failed: {run.error}")
        finished.touch()
    return VERSIONS / name


def tracking_uri_of(versions: Path) -> str:
    """The tracking URI of the versions' registry."""
    return f"sqlite:///{versions / 'mlflow.db'}"


def version_of(framework: str, registry: ModelRegistry) -> ModelVersion:
    """The version trained in this framework."""
    (version,) = [version for version in registry.versions() if version.tags["framework"] == framework]
    return version


def train(home: Path) -> None:
    """Train both frameworks' versions by materializing their assets."""
    from image_assets.jobs.asset_jobs import CACHES

    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    with timed(), dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        for framework in FRAMEWORKS:
            selection = (CACHES | dg.AssetSelection.assets(f"{framework}_model")).without_checks()
            config = {"ops": {f"{framework}_model": {"config": {"backbone": MOBILENET_V2.name}}}}  # as peers have it
            materialized(selection, instance, config)


def files_of(version: ModelVersion, folder: Path) -> Path:
    """Download a version's files, and return their folder."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(folder / version.tags["framework"])))


def model_in(files: Path) -> Path:
    """The folder of the trained model within a version's files, in its framework's MLflow flavor."""
    (model,) = {file.parent for file in files.glob("artifacts/**/MLmodel")}
    return model


def register_as_the_recipe(framework: str, model: Path, labels: list[str]) -> None:
    """Register the same weights in the recipe's own pyfunc, in stage Production."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    name = RECIPE_MODEL.format(framework)
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name=name,
            python_model=str(ROOT / "benchmarks" / "recipe_classifier.py"),
            artifacts={"model": str(model)},
            model_config={"framework": framework, "labels": labels},
            signature=ModelSignature(Schema([ColSpec(DataType.string, "path")])),
            registered_model_name=name,
            pip_requirements=["mlflow"],
        )
    mlflow.MlflowClient().transition_model_version_stage(name, "1", "Production")


def write_for_peers(files: Path, labels: list[str], folder: Path) -> None:
    """Write the network in the form this project's classifier uses: its ONNX file, or a frozen TorchScript."""
    import torch
    from mlflow import pytorch

    folder.mkdir()
    (folder / LABELS).write_text(json.dumps(labels))
    if found := [*files.glob("artifacts/**/*.onnx")]:
        shutil.copyfile(found[0], folder / ONNX)
        return
    example = torch.zeros((BATCH_IMAGES, SIDE_PIXELS, SIDE_PIXELS, 3), dtype=torch.uint8)
    with torch.no_grad():
        traced = cast("torch.jit.ScriptModule", torch.jit.trace(pytorch.load_model(str(model_in(files))), example))
        torch.jit.save(torch.jit.freeze(traced.eval()), folder / TORCHSCRIPT)


def main() -> None:
    """Train, then export the weights for the recipe and the peers."""
    import mlflow

    home = Path(read_task().target)
    train(home)
    mlflow.set_tracking_uri(tracking_uri_of(home))
    registry = ModelRegistry(tracking_uri=tracking_uri_of(home))
    for framework in FRAMEWORKS:
        version = version_of(framework, registry)
        files = files_of(version, home / OTHERS)
        register_as_the_recipe(framework, model_in(files), version.labels)
        if framework == "torch":
            write_for_peers(files, version.labels, home / OTHERS / "network")


if __name__ == "__main__":
    main()
