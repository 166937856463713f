"""Predictions in Daft, on its native runner: a class with two processes, each with the network in memory."""

from pathlib import Path

import daft
from daft import DataType, Series, col

from benchmarks.predicting import BATCH_IMAGES, Network, network_folder, predict_twice
from benchmarks.task import read_task

BATCHES_AT_ONCE = 2
ROW = DataType.struct(
    {
        "path": DataType.string(),
        "label": DataType.string(),
        "probability": DataType.float64(),
        "probabilities": DataType.list(DataType.float64()),
    }
)


@daft.cls(use_process=True, max_concurrency=2)
class Predictor:
    """Predicts with a network that is loaded once per process."""

    def __init__(self, folder: str) -> None:
        self.network = Network(Path(folder))

    @daft.method.batch(return_dtype=ROW, batch_size=BATCHES_AT_ONCE * BATCH_IMAGES)
    def predictions(self, paths: Series, contents: Series) -> list[dict]:
        """One prediction per image."""
        columns = self.network.rows(paths.to_pylist(), [*self.network.answers(contents.to_pylist())])
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def main() -> None:
    """Predict the images of a Delta table."""
    task = read_task()
    daft.set_runner_native()

    def predict(home: Path, target: Path) -> None:
        images = daft.read_deltalake(str(home / "tables" / "featured_images")).select("path", "content")
        predictor = Predictor(str(network_folder(task)))
        predictions = images.select(predictor.predictions(col("path"), col("content")).alias("prediction"))
        predictions.select(*(col("prediction").get(name).alias(name) for name in ROW.fields)).write_parquet(str(target))

    predict_twice(task, predict)


if __name__ == "__main__":
    main()
