"""What the tests of both frameworks train on."""

import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_assets.models.training_plan import OutputLocations, Schedule, TrainingPlan
from tests.support.images import colored_jpeg

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

FILES = 8
HEAD = Schedule(epochs=2, learning_rate=0.001, warmup_epochs=1, patience=5, weight_decay=1.0, dropout=0.3)
FINE_TUNING = Schedule(epochs=2, learning_rate=1e-4, warmup_epochs=0, patience=5, weight_decay=0.01, dropout=0.1)
PLAN = TrainingPlan(
    labels=2,
    backbone="none",
    content="original",
    color="rgb",
    trainable="head",
    top_blocks=3,
    augmentation=False,
    head=HEAD,
    fine_tuning=FINE_TUNING,
    batch_size=4,
    label_smoothing=0.1,
    class_weights=True,
    precision="float32",
    distributor="horovod",
    seed=0,
    backbone_name="mobilenet_v2",
    head_fit="epochs",
)


def write_cache(folder: Path, images: Sequence[tuple[bytes, int]]) -> "SparkDatasetConverter":
    """A cache of image bytes and label indexes, as Petastorm reads it, in eight files."""
    from petastorm.spark import SparkDatasetConverter

    folder.mkdir()
    for number in range(FILES):
        contents, label_indexes = zip(*images[number::FILES], strict=True)
        ids = [sha256(content).hexdigest() for content in contents]
        columns = {"image_id": ids, "content": contents, "label_index": pa.array(label_indexes, pa.int64())}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")
    return SparkDatasetConverter(folder.as_uri(), [file.as_uri() for file in sorted(folder.iterdir())], len(images))


def red_and_blue(count: int) -> list[tuple[bytes, int]]:
    """Images of two labels that are easily told apart."""
    return [(colored_jpeg(number % 2, number), number % 2) for number in range(count)]


@dataclass(frozen=True)
class Work:
    """Caches and places for trainings that share an MLflow run."""

    folder: Path
    training: "SparkDatasetConverter"
    validation: "SparkDatasetConverter"
    places: OutputLocations
    plan: TrainingPlan = field(default=PLAN)

    def arguments(
        self, **changes: Any
    ) -> tuple["SparkDatasetConverter", "SparkDatasetConverter", TrainingPlan, OutputLocations]:
        """What a framework's `train` takes."""
        return self.training, self.validation, replace(self.plan, **changes), self.places


@pytest.fixture
def to_work(tmp_path: Path, empty_store: Path) -> Callable[..., Work]:
    """Caches of the images and an MLflow run that is open."""

    def to_work(training: Sequence[tuple[bytes, int]], validation: Sequence[tuple[bytes, int]]) -> Work:
        import mlflow  # here: processes of tests that log nothing import this file as well

        shutil.copy(empty_store, tmp_path / "mlflow.db")
        tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client = mlflow.MlflowClient(tracking_uri)
        experiment = client.create_experiment("training", (tmp_path / "artifacts").as_uri())
        mlflow_run_id = client.create_run(experiment).info.run_id
        places = OutputLocations(tracking_uri, mlflow_run_id, (), str(tmp_path / "checkpoints"))
        caches = write_cache(tmp_path / "training", training), write_cache(tmp_path / "validation", validation)
        return Work(tmp_path, *caches, places)

    return to_work


@pytest.fixture
def work(to_work: Callable[..., Work]) -> Work:
    """19 red and blue images: two ranks' shards differ in size."""
    images = red_and_blue(19)
    return to_work(images, images[:10])


# Any: the function is the caller's, and so is what it takes and returns.
def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own: two frameworks in one do not get along."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()
