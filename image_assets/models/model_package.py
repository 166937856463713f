"""A version as a folder that answers without this project: by HTTP, in Python, on a device."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template

import yaml

from image_assets.models.edge_model import write_edge_model
from image_assets.models.package_requirements import to_edge_requirements, to_requirements
from image_assets.models.promotion_gate import files_as_logged
from image_assets.models.training import FILES_DIGEST
from resources.model_files import files_digest
from resources.model_registry import ModelRegistry, ModelVersion

FILES = Path(__file__).with_name("package")
EDGE_FILE = "edge/image_classifier.onnx"


def write_package(version: ModelVersion, registry: ModelRegistry, folder: Path) -> None:
    """Fill an empty folder; a ValueError when the version's files are not those that were logged."""
    model = registry.download(version.uri, folder / "model")
    files = files_as_logged(files_digest(model), version.tags.get(FILES_DIGEST))
    if not files.passed:  # files of somebody else's are not loaded
        raise ValueError(f"version {version.version} is not packaged: {files.said}")
    write_edge(model, folder)
    write_lines(folder / "requirements.txt", to_requirements(model))
    write_lines(folder / "edge" / "requirements.txt", to_edge_requirements())
    shutil.copy(model / "serving_input_example.json", folder / "request.json")
    shutil.copy(FILES / "serve.sh", folder)
    shutil.copy(FILES / "example.py", folder / "edge")
    told = {
        "version": version.version,
        "name": registry.name,
        "framework": version.tags["framework"],
        "labels": ", ".join(version.labels),
        "python": to_python(model),
    }
    for name in ("Dockerfile", "README.md"):
        (folder / name).write_text(Template((FILES / name).read_text()).substitute(told))


def write_edge(model: Path, folder: Path) -> None:
    """Write the edge file into a package, of the model that is in it."""
    from mlflow.models import Model

    stored = Model.load(model).flavors["python_function"]["artifacts"]
    network, classifier = (model / stored[name]["path"] for name in ("onnx", "classifier"))
    (folder / "edge").mkdir()
    write_edge_model(network, json.loads(classifier.read_text()), folder / EDGE_FILE)


def write_lines(file: Path, lines: Sequence[str]) -> None:
    """Write the lines into a file."""
    file.write_text("".join(f"{line}\n" for line in lines))


def to_python(model: Path) -> str:
    """Python's version of the training, without its last number: `3.11`."""
    told = yaml.safe_load((model / "python_env.yaml").read_text())
    return ".".join(told["python"].split(".")[:2])
