"""Logs a trained model to MLflow as an image classifier, the same for every framework."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from image_assets.images.pixels import DEFAULT, Reading
from image_assets.models.backbones import Backbone
from image_assets.models.engines import onnx_network
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.novelty import TrainingEmbeddings
from resources.mlflow.model_files import MODEL_NAME

if TYPE_CHECKING:
    import onnx
    from mlflow.models import ModelSignature

OPSET = 18
INPUT, OUTPUT, EMBEDDING = "pixels", "probabilities", "embedding"
TOLERANCE = 1e-3  # of a probability
TRIED_IMAGES = 8
NOISE_SQUARES = 7  # per side

CODE = Path(__file__).parent
CLASSIFIER_FILE = "classifier.json"
HEAD_FILE = "head.npz"  # a version's head, if its backbone is unchanged: kernel, bias and labels
TRAINING_EMBEDDINGS_FILE = "training_embeddings.npz"
PACKAGES = (
    *("cykooz-resizer", "imagecodecs", "mlflow", "numpy", "onnxruntime", "pandas", "pi-heif", "pillow", "pydicom"),
    *("pyvips", "pyvips-binary", "simplejpeg", "tifffile"),
)
# The files in image_assets/images that decode images: `pixels` and what it imports.
DECODING = ("colors", "dicom", "formats", "pictures", "pixels", "reduced", "tiff", "value_range")


Probabilities = Callable[[np.ndarray], np.ndarray]  # of pixels (n, side, side, 3) uint8: (n, labels) float32


class DifferentAnswers(ValueError):
    """A network and its ONNX export give different probabilities."""


def verified_onnx(exported: "onnx.ModelProto", network: Probabilities, side_pixels: int) -> bytes:
    """The content of a version's ONNX file.

    Its input `pixels` is (n, side, side, 3) uint8, not normalized; its outputs are `probabilities` (n, labels) and
    `embedding` (n, features), both float32.

    Args:
        exported: A network from pixels to probabilities.
        network: The same as its framework computes it, on the CPU.
        side_pixels: The width and height of its images.

    Raises:
        DifferentAnswers: The file gives other probabilities than the network.
    """
    add_embedding(exported)
    content = checked(exported)
    answers = onnx_network(content)
    require_same_answers(network, lambda pixels: answers(pixels)[OUTPUT], side_pixels)
    return content


def onnx_with_head(backbone: Path, kernel: np.ndarray, bias: np.ndarray) -> bytes:
    """The content of a version's ONNX file, from that of its backbone and its head: nothing is exported again.

    Args:
        backbone: The ONNX file of a backbone, from pixels to `embedding`.
        kernel: The head's, (features, labels).
        bias: The head's, (labels,).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.load(backbone)
    graph = network.graph
    for name, array in (("head_kernel", kernel), ("head_bias", bias)):
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    graph.node.append(helper.make_node("Gemm", [EMBEDDING, "head_kernel", "head_bias"], ["head_logits"]))
    graph.node.append(helper.make_node("Softmax", ["head_logits"], [OUTPUT], axis=1))
    images = graph.output[0].type.tensor_type.shape.dim[0].dim_param or None
    graph.output.insert(0, helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [images, len(bias)]))
    return checked(network)


def checked(network: "onnx.ModelProto") -> bytes:
    """The network as bytes; raises unless it keeps the rules of ONNX."""
    import onnx

    onnx.checker.check_model(network, full_check=True)
    return network.SerializeToString()


def side_of(network: "onnx.ModelProto") -> int:
    """The width and height in pixels of the images that an exported network takes."""
    return network.graph.input[0].type.tensor_type.shape.dim[1].dim_value


def require_same_answers(network: Probabilities, other: Probabilities, side_pixels: int) -> None:
    """Raise DifferentAnswers unless both give the same probabilities for some noise, within TOLERANCE."""
    # Noise in large squares: that of single pixels would average out before it reaches the head.
    noise = np.random.default_rng(0).integers(0, 256, (TRIED_IMAGES, NOISE_SQUARES, NOISE_SQUARES, 3), np.uint8)
    square = math.ceil(side_pixels / NOISE_SQUARES)
    pixels = np.kron(noise, np.ones((1, square, square, 1), np.uint8))[:, :side_pixels, :side_pixels]
    difference = float(np.abs(network(pixels) - other(pixels)).max())
    if not difference <= TOLERANCE:
        raise DifferentAnswers(
            f"probabilities differ by {difference:.2g} between a network and its ONNX: expected {TOLERANCE:g} at most; "
            "do the versions of the exporting packages differ from those in pyproject.toml?"
        )


def add_embedding(network: "onnx.ModelProto") -> None:
    """Make the head's input, which is that of the last multiplication with weights, another output of the network."""
    from onnx import TensorProto, helper

    graph = network.graph
    node_of = {name: node for node in graph.node for name in node.output}
    probabilities = graph.output[0]
    node = node_of[probabilities.name]
    while node.op_type not in ("Gemm", "MatMul"):
        node = next(node_of[name] for name in node.input if name in node_of)
    graph.node.append(helper.make_node("Identity", [node.input[0]], [EMBEDDING], name=EMBEDDING))
    images = probabilities.type.tensor_type.shape.dim[0].dim_param or None
    graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [images, None]))


@dataclass(frozen=True)
class UnvalidatedFlavor:
    """A flavor for `Model.log` without validation of the input example, an argument that its own `save_model` lacks."""

    flavor: ModuleType

    # Any: the arguments differ by flavor.
    def save_model(self, *, validate_serving_input: bool, **saved: Any) -> None:
        """Save a model in the flavor."""
        self.flavor.save_model(**saved)


def log_to_run(name: str, flavor: ModuleType, *, tracking_uri: str, mlflow_run_id: str, **saved: Any) -> str:
    """Log a model to the run in a flavor, a module such as `mlflow.pyfunc`; the model's URI.

    The flavors' own `log_model` would resume the run in this process and end it when the process ends. Without an
    active run, the model would land in the default experiment instead of the run's. To validate the input example,
    MLflow would load the model, and its framework, into this process.
    """
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    experiment_id = client.get_run(mlflow_run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name=name, source_run_id=mlflow_run_id)
    logged = Model.log(
        artifact_path=None,
        name=name,
        flavor=UnvalidatedFlavor(flavor),
        run_id=mlflow_run_id,
        model_id=model.model_id,
        validate_serving_input=False,
        **saved,
    )
    return logged.model_uri


@dataclass(frozen=True)
class TrainedClassifier:
    """What a version consists of, besides the model in its own flavor.

    Attributes:
        network: The content of an ONNX file that computes the same as the model; see `verified_onnx`.
        labels: In the order of the model's probabilities.
        framework: The name of the framework that the model was trained in.
        backbone: The model's backbone, which determines the size of images.
        color: What the model was trained on; a `gray` version converts every image to gray.
        reading: How the model's images are read.
        thresholds: For each label, the probability below which the version abstains, None if it always does; None if
            it abstains for no label.
        training_embeddings: What the version measures distances from; without them, it measures none.
        head: Kernel (features, labels) and bias (labels,) if the model is an unchanged backbone with this head, which
            can then answer stored embeddings.
    """

    network: bytes
    labels: Sequence[str]
    framework: str
    backbone: Backbone
    color: Literal["rgb", "gray"] = "rgb"
    reading: Reading = DEFAULT
    thresholds: Sequence[float | None] | None = None
    training_embeddings: TrainingEmbeddings | None = None
    head: tuple[np.ndarray, np.ndarray] | None = None

    def settings(self) -> dict[str, Any]:
        """What `image_classifier.py` reads from CLASSIFIER_FILE."""
        return {
            "framework": self.framework,
            "labels": list(self.labels),
            "color": self.color,
            "backbone": self.backbone.name,
            "side_pixels": self.backbone.side_pixels,
            "reading": asdict(self.reading),
            "thresholds": None if self.thresholds is None else list(self.thresholds),
        }


def log_classifier(classifier: TrainedClassifier, model_uri: str, *, tracking_uri: str, mlflow_run_id: str) -> str:
    """Log the classifier for a model that is in MLflow in its own flavor; the classifier's URI.

    No framework is imported into this process. MLflow stores code, not a pickled object.

    Args:
        classifier: What is stored beside the model.
        model_uri: The model in its own flavor.
        tracking_uri: Where the run is.
        mlflow_run_id: The run to log to.
    """
    import mlflow
    from mlflow import pyfunc

    mlflow.set_tracking_uri(tracking_uri)  # otherwise download_artifacts looks for the URI elsewhere
    packages = (*PACKAGES, *FRAMEWORKS[classifier.framework].packages)
    with tempfile.TemporaryDirectory() as folder:
        model = mlflow.artifacts.download_artifacts(model_uri, dst_path=str(Path(folder, "model")))
        return log_to_run(
            MODEL_NAME,
            pyfunc,
            tracking_uri=tracking_uri,
            mlflow_run_id=mlflow_run_id,
            python_model=str(CODE / "image_classifier.py"),
            artifacts={"model": model, **written_artifacts(classifier, Path(folder))},
            model_config={"device": "auto"},
            signature=classifier_signature(),
            input_example=input_example(),
            pip_requirements=[f"{package}=={version(package)}" for package in packages],
        )


def written_artifacts(classifier: TrainedClassifier, folder: Path) -> dict[str, str]:
    """Writes the classifier's files to the folder; the paths of its artifacts, code included, by name."""
    network, settings = folder / "network.onnx", folder / CLASSIFIER_FILE
    network.write_bytes(classifier.network)
    settings.write_text(json.dumps(classifier.settings(), ensure_ascii=False))
    artifacts = {
        "onnx": network,
        "decoding": copy_decoding(folder / "decoding"),
        "engines": CODE / "engines.py",
        "occlusion": CODE / "occlusion.py",
        "framework": FRAMEWORKS[classifier.framework].network_file,
        "novelty": CODE / "novelty.py",
        "classifier": settings,
    }
    if classifier.training_embeddings:
        artifacts["training_embeddings"] = folder / TRAINING_EMBEDDINGS_FILE
        classifier.training_embeddings.save(artifacts["training_embeddings"])
    if classifier.head:
        artifacts["head"] = folder / HEAD_FILE
        kernel, bias = classifier.head
        np.savez(artifacts["head"], kernel=kernel, bias=bias, labels=np.array(classifier.labels))
    return {name: str(file) for name, file in artifacts.items()}


def copy_decoding(folder: Path) -> Path:
    """Copies the files that decode images into a new folder, from which a version imports them."""
    folder.mkdir()
    for name in DECODING:
        shutil.copyfile(CODE.parent / "images" / f"{name}.py", folder / f"{name}.py")
    return folder


def input_example() -> pd.DataFrame:
    """One row of input: the bytes of a small image."""
    image = BytesIO()
    Image.new("RGB", (8, 8), "tomato").save(image, "PNG")
    return pd.DataFrame({"content": [image.getvalue()], "path": [None]})


def classifier_signature() -> "ModelSignature":
    """The columns that the classifier returns, and the parameters of `predict`.

    Without inputs: to compare them with a schema, MLflow makes a DataFrame of whatever it gets, and so drops lists and
    rejects pixels. The classifier checks its inputs itself.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
                ColSpec(DataType.boolean, "abstained"),
                ColSpec(DataType.string, "most_probable_label"),
                ColSpec(DataType.double, "distance_from_training"),
                ColSpec(DataType.boolean, "unlike_training"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, 0),
                ParamSpec("probabilities_by_label", DataType.boolean, False),
                ParamSpec("explain", DataType.boolean, False),
            ]
        ),
    )
