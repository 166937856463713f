"""This project's predictions, as `image_predictions` computes them for a version without predictions."""

import os
from pathlib import Path

from benchmarks.ours import bytes_in, start_spark, use_home
from benchmarks.parts import timed_parts
from benchmarks.predicting import ALL, FIRST, landing_in
from benchmarks.task import read_task, seconds_since_start, timed
from benchmarks.versions import version_of
from resources.mlflow.model_registry import ModelRegistry


def predict(home: Path, framework: str) -> None:
    """Predict the images of a home, which may differ from the home that this process was configured for."""
    from definitions import resources
    from image_assets.predictions.image_predictions import score
    from resources.delta.delta_tables import DeltaTables

    registry = ModelRegistry(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    tables = DeltaTables(pyspark=resources["pyspark"], root=str(home / "tables"))
    if error := score(tables, registry, version_of(framework, registry), "cpu"):
        raise error


def main() -> None:
    """Predict a few images, then all of them."""
    task = read_task()
    first, images = Path(task.source) / FIRST, Path(task.source) / ALL
    use_home(first, landing_in(first))
    start_spark(bytes_in(landing_in(images)))
    predict(first, task.kernel)
    first_seconds = seconds_since_start()
    with timed() as figures, timed_parts() as parts:
        predict(images, task.kernel)
        figures |= {"first_seconds": first_seconds, "parts": parts}


if __name__ == "__main__":
    main()
