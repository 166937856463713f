"""Export of a model version as a folder that runs without this project."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any  # Any: JSON

import dagster as dg
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.models.backbones import max_onnx_bytes_of
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import INPUT, OPSET, OUTPUT, side_of
from image_assets.models.promotion_gate import files_as_logged
from resources.mlflow.model_files import files_digest
from resources.mlflow.model_packages import ModelPackages
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion

if TYPE_CHECKING:
    import onnx

IMAGE_INPUT = "image"
# These ONNX nodes in front of the network do what `pixels.py` does to a decoded image, with Pillow's numbers: gray as
# a weighted sum of integers, and an antialiased bilinear resize that ignores pixels outside the image.
RESIZED = f"""
    batch = Unsqueeze (to_resize, first)
    square = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (batch, , , sizes)
    {INPUT} = Expand (square, shape)
"""
CONSTANTS = """
    int64[1] first = {0}, int64[4] sizes = {1, SIDE, SIDE, CHANNELS}, int64[4] shape = {1, SIDE, SIDE, 3}
"""
TO_GRAY = """
    values = Cast <to = 6> (image)
    weighted = Mul (values, weights)
    sums = ReduceSum <keepdims = 1> (weighted, last)
    rounded = Add (sums, half)
    levels = Div (rounded, whole)
    to_resize = Cast <to = 2> (levels)
"""
GRAY_CONSTANTS = """,
    int64[1] last = {2}, int32[3] weights = {19595, 38470, 7471}, int32 half = {32768}, int32 whole = {65536}
"""
IN_COLOR = "to_resize = Identity (image)"
SERVING_PACKAGES = {"mlflow": "mlflow-skinny"}  # the part of MLflow that loads and serves a model
EDGE = ("onnxruntime", "pillow")
EDGE_FILE = "edge/image_classifier.onnx"


def write_edge_model(network: Path, classifier: Mapping[str, Any], file: Path) -> None:
    """Writes the exported network with its preprocessing as a single ONNX model.

    The model maps `image`, uint8 of shape (height, width, 3), to `probabilities`, float32 of shape (1, labels). Its
    metadata contain `labels` (JSON, in the order of the probabilities), `thresholds` (JSON, in the same order: the
    probability below which the version abstains, null if it always does), `color` (`rgb` or `gray`) and `framework`.

    Args:
        network: The `network.onnx` of a version.
        classifier: The version's settings, with `labels`, `framework` and `color`.
        file: The file to write.

    Raises:
        ValueError: The model is larger than devices accept.
    """
    import onnx

    model = onnx.load(network)
    color = classifier.get("color", "rgb")
    front = onnx.compose.add_prefix(  # its names could occur in the network
        _front(color, side_of(model), model.ir_version), "front/", rename_inputs=False, rename_outputs=False
    )
    whole = onnx.compose.merge_models(front, model, io_map=[(INPUT, INPUT)], outputs=[OUTPUT])
    labels, thresholds = classifier["labels"], classifier.get("thresholds") or [0.0] * len(classifier["labels"])
    properties = {"labels": json.dumps(labels, ensure_ascii=False), "thresholds": json.dumps(thresholds)}
    properties |= {"framework": classifier["framework"], "color": color, "side_pixels": str(side_of(model))}
    onnx.helper.set_model_props(whole, properties)
    onnx.checker.check_model(whole, full_check=True)
    content = whole.SerializeToString()
    most = max_onnx_bytes_of(classifier)
    if most and len(content) > most:
        raise ValueError(
            f"The model has {len(content):,} bytes, but devices accept at most {most:,}. Train a smaller network."
        )
    file.write_bytes(content)


def _front(color: str, side_pixels: int, ir_version: int) -> "onnx.ModelProto":
    import onnx

    channels, before, more = {"rgb": (3, IN_COLOR, ""), "gray": (1, TO_GRAY, GRAY_CONSTANTS)}[color]
    constants = CONSTANTS.replace("SIDE", str(side_pixels)).replace("CHANNELS", str(channels)) + more
    return onnx.parser.parse_model(
        f"""<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
        front (uint8[height, width, 3] {IMAGE_INPUT})
            => (uint8[1, {side_pixels}, {side_pixels}, 3] {INPUT}) <{constants}>
        {{ {before} {RESIZED} }}"""
    )


# Not needed on a CPU, where ONNX Runtime predicts.
FOR_GPUS = {package for framework in FRAMEWORKS.values() for package in framework.packages}


def to_requirements(version: Path) -> list[str]:
    """The lines of a requirements file for the version in this folder, which MLflow downloaded.

    The version names its direct dependencies as of its training. If the same versions are installed here, their own
    dependencies are pinned as installed; otherwise pip chooses them.
    """
    requirements = [Requirement(line) for line in (version / "requirements.txt").read_text().splitlines() if line]
    direct = {
        SERVING_PACKAGES.get(one.name, one.name): str(one.specifier) for one in requirements if one.name not in FOR_GPUS
    }
    pins = installed_with([*direct])
    if any(pins[name] != pin for name, pin in direct.items()):
        pins = direct
    return sorted(f"{name}{pin}" for name, pin in pins.items())


def to_edge_requirements() -> list[str]:
    """The lines of a requirements file for the example that runs the edge model."""
    return [f"{name}=={metadata.version(name)}" for name in EDGE]


def installed_with(names: Sequence[str]) -> dict[str, str]:
    """The packages and all their dependencies as installed here: names, and `==` with the version."""
    pins: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in pins:
            pins[name] = f"=={metadata.version(name)}"
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return pins


TEMPLATES = Path(__file__).with_name("package")


def write_package(version: ModelVersion, registry: ModelRegistry, folder: Path) -> None:
    """Writes the version into an empty folder; a ValueError if its files have changed since they were logged."""
    model = registry.download(version.uri, folder / "model")
    files = files_as_logged(files_digest(model), version.tags.get(FILES_DIGEST))
    if not files.passed:  # never load files that somebody has replaced
        raise ValueError(f"Version {version.version} was not packaged: {files.detail}")
    network, classifier = network_and_classifier(model)
    (folder / "edge").mkdir()
    write_edge_model(network, classifier, folder / EDGE_FILE)
    write_lines(folder / "requirements.txt", to_requirements(model))
    write_lines(folder / "edge" / "requirements.txt", to_edge_requirements())
    shutil.copy(model / "serving_input_example.json", folder / "request.json")
    shutil.copy(TEMPLATES / "serve.sh", folder)
    shutil.copy(TEMPLATES / "example.py", folder / "edge")
    values = {
        "version": version.version,
        "name": registry.name,
        "framework": classifier["framework"],
        "labels": ", ".join(version.labels),
        "python": to_python(model),
    }
    for name in ("Dockerfile", "README.md"):
        (folder / name).write_text(Template((TEMPLATES / name).read_text()).substitute(values))


def network_and_classifier(model: Path) -> tuple[Path, dict[str, Any]]:
    """The exported network of an MLflow model, and the settings of its classifier; a ValueError if it has neither."""
    from mlflow.models import Model

    stored = Model.load(model).flavors["python_function"].get("artifacts", {})
    if not {"onnx", "classifier"} <= stored.keys():
        raise ValueError(
            f"The version has the artifacts {', '.join(stored) or 'none'}: expected onnx and classifier, which every "
            "version has that was trained here. Package another version."
        )
    network, classifier = (model / stored[name]["path"] for name in ("onnx", "classifier"))
    return network, json.loads(classifier.read_text())


def write_lines(file: Path, lines: Sequence[str]) -> None:
    """Writes the lines to the file."""
    file.write_text("".join(f"{line}\n" for line in lines))


def to_python(model: Path) -> str:
    """Python's major and minor version at training, such as `3.11`."""
    environment = yaml.safe_load((model / "python_env.yaml").read_text())
    return ".".join(environment["python"].split(".")[:2])


class PackageConfig(dg.Config):
    """The version to package, and the folder."""

    version: int = Field(gt=0, description="The registered model version to package.")
    folder: str | None = Field(
        default=None,
        description="A folder that does not exist yet. Default: `packages/<model>_v<version>` in the home.",
    )


@dg.op
def package(
    context: dg.OpExecutionContext, config: PackageConfig, model_registry: ModelRegistry, model_packages: ModelPackages
) -> None:
    """Packages a version. The output's metadata contains the folder and how to run it."""
    version = model_registry.version(config.version)
    fill = partial(write_package, version, model_registry)
    folder = model_packages.write(f"{model_registry.name}_v{version.version}", fill, config.folder)
    context.add_output_metadata(
        {
            "model_uri": version.uri,
            "folder": dg.MetadataValue.path(folder),
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "edge_bytes": (folder / EDGE_FILE).stat().st_size,
            "run": dg.MetadataValue.md((folder / "README.md").read_text()),
        }
    )


@dg.job(
    description=with_example(
        "package_model",
        "Export a model version to a folder that serves predictions over HTTP and on devices, without this project.",
    )
)
def package_model() -> None:
    """Packages one version."""
    package()
