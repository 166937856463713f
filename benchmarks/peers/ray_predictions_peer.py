"""Predictions in Ray Data: two actors, each with the network in memory."""

import logging
from pathlib import Path

import pyarrow as pa
import ray
from deltalake import DeltaTable

from benchmarks.predicting import BATCH_IMAGES, Network, network_folder, predict_twice
from benchmarks.task import read_task

ACTORS = 2
BATCHES_AT_ONCE = 2
BLOCKS = 8  # enough for two actors to share, whatever the file sizes


class Predictor:
    """Predicts with a network that is loaded once per actor."""

    def __init__(self, folder: str) -> None:
        self.network = Network(Path(folder))

    def __call__(self, images: pa.Table) -> pa.Table:
        """One prediction per image."""
        contents = [content.as_py() for content in images["content"]]
        return pa.table(self.network.rows(images["path"].to_pylist(), [*self.network.answers(contents)]))


def main() -> None:
    """Predict the images of a table's Parquet files."""
    task = read_task()
    # Declare twice as many CPUs as there are: actors never release theirs, so reading and writing would get none.
    ray.init(num_cpus=2 * ACTORS, include_dashboard=False, logging_level=logging.ERROR)
    folder = str(network_folder(task))

    def predict(home: Path, target: Path) -> None:
        files = DeltaTable(home / "tables" / "featured_images").file_uris()
        images = ray.data.read_parquet(files, columns=["path", "content"], override_num_blocks=BLOCKS)
        predictions = images.map_batches(
            Predictor,
            fn_constructor_args=(folder,),
            batch_size=BATCHES_AT_ONCE * BATCH_IMAGES,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=ACTORS),
        )
        predictions.write_parquet(str(target))

    predict_twice(task, predict)
    ray.shutdown()


if __name__ == "__main__":
    main()
