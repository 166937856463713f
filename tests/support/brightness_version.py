"""A version of a few ONNX nodes that tells bright images from dark ones, stored as a training stores its version."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from image_assets.images.pixels import Reading
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import classifier_signature, copy_decoding, input_example
from image_assets.models.novelty import TrainingEmbeddings

MODELS = Path(__file__).parents[2] / "image_assets" / "models"
SIDE = 32
LABELS = ["bright", "dark"]


# Any: what a classifier.json holds.
def saved_brightness(folder: Path, training: TrainingEmbeddings | None = None, **classifier: Any) -> Path:
    """A version whose probability of `bright` is the image's mean brightness, with more of a `classifier.json`.

    The embedding is the mean color.
    """
    weights = np.array([[1, -1]] * 3, np.float32) / (3 * 255)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Identity", ["means"], ["embedding"]),
        helper.make_node("MatMul", ["means", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([0, 1], np.float32), "bias")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "network.onnx")
    stored = {"labels": LABELS, "color": "rgb", "side_pixels": SIDE, "reading": asdict(Reading()), **classifier}
    (folder / "classifier.json").write_text(json.dumps(stored))
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").touch()
    more = {}
    if training:
        training.save(folder / "training_embeddings.npz")
        more["training_embeddings"] = str(folder / "training_embeddings.npz")
    framework = next(iter(FRAMEWORKS.values()))
    mlflow.pyfunc.save_model(
        folder / "version",
        python_model=str(MODELS / "image_classifier.py"),
        artifacts={
            "model": str(folder / "model"),
            "onnx": str(folder / "network.onnx"),
            "decoding": str(copy_decoding(folder / "decoding")),
            "engines": str(MODELS / "engines.py"),
            "framework": str(framework.network_file),
            "classifier": str(folder / "classifier.json"),
            "novelty": str(MODELS / "novelty.py"),
            "occlusion": str(MODELS / "occlusion.py"),
            **more,
        },
        model_config={"device": "cpu"},
        signature=classifier_signature(),
        input_example=input_example(),
        pip_requirements=["mlflow"],
    )
    return folder / "version"
