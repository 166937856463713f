"""What the tests of both frameworks train on."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from image_assets.models.trained import Trained
from resources.horovod_runner import HorovodRunner

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

FILES = 8
COLORS = ((200, 60, 50), (50, 70, 190))  # of the labels red and blue
LABELS = ("red", "blue")


@pytest.fixture
def colored_image() -> Callable[[int, int], bytes]:
    """A noisy JPEG in the color of a label; the seed makes it one of its own."""

    def image(label_index: int, seed: int) -> bytes:
        noise = np.random.default_rng((label_index, seed)).integers(-40, 40, (60, 80, 3))
        pixels = np.clip(np.array(COLORS[label_index]) + noise, 0, 255).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()

    return image


def write_cache(folder: Path, images: Sequence[tuple[bytes, int]]) -> "SparkDatasetConverter":
    """A cache of image bytes and label indexes, as Petastorm reads it, in eight files."""
    from petastorm.spark import SparkDatasetConverter

    folder.mkdir()
    for number in range(FILES):
        contents, label_indexes = zip(*images[number::FILES], strict=True)
        table = pa.table({"content": contents, "label_index": pa.array(label_indexes, pa.int64())})
        pq.write_table(table, folder / f"{number}.parquet")
    return SparkDatasetConverter(folder.as_uri(), [file.as_uri() for file in sorted(folder.iterdir())], len(images))


@pytest.fixture
def trained_on_two_ranks(
    tmp_path: Path, spark: SparkSession, colored_image: Callable[[int, int], bytes]
) -> Callable[..., tuple[list[Trained], str, str]]:
    """Train on red and blue images with two Horovod processes; what the ranks bring back, where MLflow is, its run."""

    def trained(train: Callable[..., Trained], *, backbone: str = "none") -> tuple[list[Trained], str, str]:
        tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client = mlflow.MlflowClient(tracking_uri)
        experiment = client.create_experiment("training", (tmp_path / "artifacts").as_uri())
        mlflow_run_id = client.create_run(experiment).info.run_id
        # 19 images: the ranks' shards differ in size.
        images = [(colored_image(number % 2, number), number % 2) for number in range(19)]
        ranks = HorovodRunner(processes=2).run(
            spark,
            train,
            write_cache(tmp_path / "training", images),
            write_cache(tmp_path / "validation", images[:10]),
            labels=2,
            backbone=backbone,
            epochs=2,
            batch_size=4,
            learning_rate=0.001,
            seed=0,
            tracking_uri=tracking_uri,
            mlflow_run_id=mlflow_run_id,
        )
        return ranks, tracking_uri, mlflow_run_id

    return trained
