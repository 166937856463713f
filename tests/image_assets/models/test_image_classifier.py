"""Tests of the classifier that every model becomes, loaded as MLflow loads it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from image_assets.images.grayscale import to_grayscale
from image_assets.images.isolated_process import GuardedProcess
from image_assets.models.backbones import MOBILENET_V2
from image_assets.models.image_classifier import ANSWER_COLUMNS
from image_assets.models.logged_models import TrainedClassifier, log_classifier
from image_assets.models.novelty import TrainingEmbeddings
from image_assets.models.scoring import separate_workers
from image_assets.predictions.version_embeddings import EmbeddingRequest, embed_images
from tests.support.images import colored_jpeg, noise_jpeg, png, put
from tests.support.photographs import WEIGHTS

COLORS: dict[str, Literal["rgb", "gray"]] = {"tensorflow": "rgb", "torch": "gray"}
NO_WEIGHTS = f"no weights in {WEIGHTS}: what an untrained backbone makes of images is alike for all of them"
ANSWER = "label string, probability double, probabilities array<double>"
# Runs the programs below one after the other, in a process for each framework: they do not share one.
RUN = """
import json, os, sys
os.environ["OMP_NUM_THREADS"] = "1"
for line in sys.stdin:
    program, *sys.argv[1:] = json.loads(line)
    exec(program, {})
    print("done", flush=True)
"""
# What the framework's process runs first.
LOG = """
import sys
from importlib import import_module
from pathlib import Path
import mlflow
import numpy as np
from image_assets.models.backbones import MOBILENET_V2
from image_assets.images.pixels import to_pixels
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import verified_onnx
from image_assets.models.novelty import TrainingEmbeddings
from tests.support.images import colored_jpeg
framework, tracking_uri, mlflow_run_id, file, backbone, color = sys.argv[1:]
training = import_module(f"image_assets.models.{framework}_training")
model, origin = training.build_model(labels=2, backbone=MOBILENET_V2, weights=backbone, seed=0)
assert origin == ("untrained" if backbone == "none" else "folder")
kernel = np.random.default_rng(0).normal(0, 0.15, (1280, 2)).astype(np.float32)  # a head that tells images apart
if framework == "tensorflow":
    model.get_layer("head").set_weights([kernel, np.zeros(2, np.float32)])
else:
    head = model.get_submodule("head").weight.data
    head.copy_(head.new_tensor(kernel.T))
uri = training.log_model(model, 2, MOBILENET_V2, tracking_uri, mlflow_run_id)
Path(file).write_text(uri)
exported, network = training.export_network(model, MOBILENET_V2)
Path(file).with_name("network.onnx").write_bytes(verified_onnx(exported, network, 224))
embed = FRAMEWORKS[framework].network.load_embedder(mlflow.artifacts.download_artifacts(uri))
images = np.stack([to_pixels(colored_jpeg(n % 2, n), 224, color) for n in range(30)])
found = TrainingEmbeddings.of(embed(images[:20]))
found.calibrated(found.distances(embed(images[20:]))).save(Path(file).with_name("embeddings.npz"))
"""
# In a process of its own: with nothing of the project to import, and without the other framework. It answers a file of
# images for each line of its input.
PREDICT = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2], model_config={"device": "cpu"})
for line in sys.stdin:
    file = line.rstrip()
    model.predict(pd.read_pickle(file)).to_pickle(file)
    assert not [module for module in sys.modules if module.startswith(("image_assets", "resources"))]
    print("answered", flush=True)
"""
# What it runs then: the framework's network in half precision, as on a GPU, beside the ONNX of the same version.
HALF = """
import json, sys
from pathlib import Path
import mlflow, numpy as np
from image_assets.models import engines
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.images.pixels import to_pixels
device, tracking_uri, uri, *images = sys.argv[1:]
mlflow.set_tracking_uri(tracking_uri)
files = Path(mlflow.artifacts.download_artifacts(uri)) / "artifacts"
framework = json.loads((files / "classifier.json").read_text())["framework"]
(model,) = (file.parent for file in files.glob("*/MLmodel"))
code = FRAMEWORKS[framework].network
assert device == "cpu" or code.count_gpus()  # TensorFlow would answer on the CPU
network, OutOfMemory = code.load_network(str(model), device)
pixels = np.stack([to_pixels(Path(file).read_bytes(), 224) for file in images])
half, single = network(pixels), engines.onnx_network(str(files / "network.onnx"))(pixels)
assert half.keys() == single.keys() == {"probabilities", "embedding"}
assert half["embedding"].shape == single["embedding"].shape
cosines = (half["embedding"] * single["embedding"]).sum(1)
cosines /= np.linalg.norm(half["embedding"], axis=1) * np.linalg.norm(single["embedding"], axis=1)
assert cosines.min() > 0.999, cosines
half, single = half["probabilities"], single["probabilities"]
assert abs(half - single).max() <= 0.1, (half, single)  # a head of random weights exaggerates
assert (half.argmax(1) == single.argmax(1)).all(), (half, single)
if framework == "torch":
    import torch
    error = torch.OutOfMemoryError("CUDA out of memory")
else:
    import tensorflow as tf
    error = tf.errors.ResourceExhaustedError(None, None, "OOM")
asked = []
def small_memory(pixels):
    asked.append(len(pixels))
    if len(pixels) > 1:
        raise error
    return network(pixels)
fitting = engines.in_fitting_batches(small_memory, 128, OutOfMemory)
assert abs(fitting(pixels)["probabilities"] - half).max() < 1e-3
assert asked == [2, 1, 1], asked
"""


@pytest.fixture(scope="module")
def run_program() -> Iterator[Callable[..., None]]:
    """Run a program with arguments in the process of a framework."""
    with ExitStack() as stack:
        processes: dict[str, subprocess.Popen[str]] = {}

        def run_program(framework: str, *program_and_arguments: str) -> None:
            if framework not in processes:
                command = [sys.executable, "-c", RUN]
                started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                processes[framework] = stack.enter_context(started)
            process = processes[framework]
            print(json.dumps(program_and_arguments), file=process.stdin, flush=True)
            assert process.stdout
            assert "done\n" in iter(process.stdout.readline, ""), "the program failed"

        yield run_program


@pytest.fixture(scope="module", params=["tensorflow", "torch"])
def classifier(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    run_program: Callable[..., None],
) -> tuple[str, str]:
    """Where MLflow is, and the URI of a classifier in it; its backbone is trained where this machine has weights."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(empty_store, folder / "mlflow.db")
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri)
    run = client.create_run(client.create_experiment("classifiers", (folder / "artifacts").as_uri()))
    backbone = str(WEIGHTS) if WEIGHTS.is_dir() else "none"
    arguments = [tracking_uri, run.info.run_id, str(folder / "uri"), backbone, COLORS[request.param]]
    run_program(request.param, LOG, request.param, *arguments)
    trained = TrainedClassifier(
        network=(folder / "network.onnx").read_bytes(),
        labels=["red", "blue"],
        framework=request.param,
        backbone=MOBILENET_V2,
        color=COLORS[request.param],
        training_embeddings=TrainingEmbeddings.load(str(folder / "embeddings.npz")),
    )
    model_uri, run_id = (folder / "uri").read_text(), run.info.run_id
    return tracking_uri, log_classifier(trained, model_uri, tracking_uri=tracking_uri, mlflow_run_id=run_id)


@pytest.fixture(scope="module")
def predict(
    classifier: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[pd.DataFrame], pd.DataFrame]]:
    """Ask the classifier, in a process that holds nothing of the project."""
    folder = tmp_path_factory.mktemp("predict")
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-P", "-c", PREDICT, *classifier]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=variables, text=True, **pipes) as process:

        def predictions(images: pd.DataFrame) -> pd.DataFrame:
            file = folder / "images.pickle"
            images.to_pickle(file)
            print(file, file=process.stdin, flush=True)
            assert process.stdout
            assert process.stdout.readline() == "answered\n"
            return cast("pd.DataFrame", pd.read_pickle(file))

        yield predictions


@pytest.mark.training
def test_bytes_and_paths_are_answered_and_a_broken_image_is_nulls_in_its_row(
    predict: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    contents = [colored_jpeg(number % 2, number) for number in range(10)]
    names = [*(f"{number}.jpg".encode() for number in range(8)), b"50% \xff.jpg", "größe.jpg".encode()]
    for name, content in zip(names, contents, strict=True):
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    # As in the tables: only `%` and what is no UTF-8 is written as `%XX`.
    paths = [*(f"{tmp_path}/{number}.jpg" for number in range(8)), f"file:{tmp_path}/50%25 %FF.jpg"]
    paths.append(f"file:{tmp_path}/größe.jpg")
    by_content = [*contents[:3], contents[3][:200], *contents[4:]]
    with Image.open(BytesIO(contents[0])) as image:
        few_colors = image.quantize(16)
    few_colors.resize((8000, 7000), Image.Resampling.NEAREST).save(tmp_path / "large.png", compress_level=1)
    few_colors.resize((800, 700), Image.Resampling.NEAREST).save(tmp_path / "copy.png")
    images = pd.DataFrame(
        {
            "content": [*by_content, *[None] * 13],
            "path": [
                *["file:/nowhere"] * 10,
                *paths,
                str(tmp_path),
                *(f"{tmp_path}/{n}.png" for n in ("copy", "large")),
            ],
        },
        index=range(100, 123),
    )

    answers = predict(images)

    assert answers.index.tolist() == images.index.tolist()
    assert answers.columns.tolist() == [*ANSWER_COLUMNS]
    unanswered = [103, 120]
    assert answers.index[answers["label"].isna()].tolist() == unanswered
    assert answers.index[answers["probability"].isna()].tolist() == unanswered
    assert answers.index[answers["probabilities"].isna()].tolist() == unanswered
    for label, probability, probabilities in answers[["label", "probability", "probabilities"]].dropna().to_numpy():
        assert sum(probabilities) == pytest.approx(1)
        assert probability == max(probabilities)
        assert label == ["red", "blue"][probabilities.index(probability)]
    for number in (0, 1, 2, *range(4, 10)):  # the same image by content and by path
        assert answers["probability"].iloc[number] == pytest.approx(answers["probability"].iloc[10 + number], abs=1e-5)
    # More pixels than are decoded whole: scaled while they are decoded. A head of random weights exaggerates.
    assert answers["label"].iloc[22] == answers["label"].iloc[21]
    assert answers["probabilities"].iloc[22] == pytest.approx(answers["probabilities"].iloc[21], abs=0.1)


@pytest.mark.training
@pytest.mark.parametrize("classifier", ["torch"], indirect=True)
def test_a_version_of_gray_answers_the_same_for_an_image_and_for_its_gray(
    predict: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    contents = [colored_jpeg(number % 2, number) for number in range(4)]
    answers = predict(pd.DataFrame({"content": [*contents, *map(to_grayscale, contents)]}))
    assert answers["probability"][:4].tolist() == pytest.approx(answers["probability"][4:].tolist(), abs=1e-6)


@pytest.mark.training
def test_images_are_embedded_by_the_network_below_its_head(classifier: tuple[str, str], tmp_path: Path) -> None:
    files = [put(tmp_path, f"{number}.jpg", colored_jpeg(number % 2, number)) for number in (0, 1, 2)]
    names = [*files, put(tmp_path, "text.jpg", b"no image"), put(tmp_path, "again.jpg", colored_jpeg(0, 0))]
    asked = EmbeddingRequest(*classifier, tuple(f"file:{name}" for name in names))
    with GuardedProcess(embed_images, memory_bytes=64 * 1024**3, name="model") as guarded:
        found = guarded.run(asked, cpu_seconds=300)
        nothing = guarded.run(EmbeddingRequest(*classifier, ()), cpu_seconds=300)
    assert isinstance(found, np.ndarray), found
    assert found.shape == (4, 1280)
    assert found.any(axis=1).all()
    # Those of an untrained network are tiny.
    assert np.allclose(found[0], found[3], rtol=1e-3, atol=0)
    assert not np.allclose(found[0], found[1], rtol=0.1, atol=0)
    assert isinstance(nothing, np.ndarray)
    assert len(nothing) == 0


@pytest.mark.training
def test_no_images_are_answered_with_no_rows(predict: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    answers = predict(pd.DataFrame({"path": pd.Series([], dtype=object)}))

    assert answers.columns.tolist() == [*ANSWER_COLUMNS]
    assert len(answers) == 0


@pytest.mark.training
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=NO_WEIGHTS)
def test_images_of_other_things_are_unlike_the_training_images(
    predict: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    contents = [colored_jpeg(number % 2, number) for number in (100, 101)] + [noise_jpeg(1), png(1)]
    answers = predict(pd.DataFrame({"content": contents}))
    assert answers["unlike_training"].tolist() == [False, False, True, True]
    assert answers["distance_from_training"][:2].max() < answers["distance_from_training"][2:].min()


@pytest.fixture
def ask_in_half_precision(
    request: pytest.FixtureRequest, classifier: tuple[str, str], run_program: Callable[..., None], tmp_path: Path
) -> Callable[[str], None]:
    """Compare the answers of the framework's network on a device with those of the ONNX."""
    files = [str(put(tmp_path, f"{number}.jpg", colored_jpeg(number % 2, number))) for number in range(2)]
    framework = request.node.callspec.params["classifier"]
    return lambda device: run_program(framework, HALF, device, *classifier, *files)


@pytest.mark.training
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=NO_WEIGHTS)
def test_half_precision_answers_alike_and_out_of_memory_halves_the_batch(
    ask_in_half_precision: Callable[[str], None],
) -> None:
    ask_in_half_precision("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=NO_WEIGHTS)
def test_a_gpu_answers_as_the_cpu_does(ask_in_half_precision: Callable[[str], None]) -> None:
    ask_in_half_precision("cuda")


@pytest.mark.spark
@pytest.mark.training
def test_spark_asks_by_struct(classifier: tuple[str, str], spark: SparkSession) -> None:
    contents = [*(colored_jpeg(number % 2, number) for number in range(9)), None]
    rows = [(number, content, "file:/nowhere") for number, content in enumerate(contents)]
    images = spark.createDataFrame(rows, "number int, content binary, path string")
    mlflow.set_tracking_uri(classifier[0])
    ask = mlflow.pyfunc.spark_udf(spark, classifier[1], env_manager="local", result_type=ANSWER)
    with separate_workers(spark, framework=classifier[1]):
        answer = cast("Column", ask(F.struct("content", "path")))

    answers = images.withColumn("answer", answer).select("number", "answer.*")

    predicted = {row["number"]: row for row in answers.collect()}
    assert len(predicted) == 10
    assert {predicted[number]["label"] for number in range(9)} <= {"red", "blue"}
    assert all(sum(predicted[number]["probabilities"]) == pytest.approx(1) for number in range(9))
    assert predicted[9]["probability"] is None
    assert predicted[9]["probabilities"] is None
