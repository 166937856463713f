"""Predictions in a plain loop over torch's DataLoader: workers decode files, this process runs the network."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset

from benchmarks.photographs import files_in
from benchmarks.predicting import (
    BATCH_IMAGES,
    Network,
    decoded,
    landing_in,
    network_folder,
    predict_twice,
)
from benchmarks.task import read_task


class Photographs(Dataset):
    """The photographs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(str(file) for file in files_in(folder))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> np.ndarray:
        return decoded(Path(self.files[place]).read_bytes())


def main() -> None:
    """Predict; the kernel is `workers,threads`."""
    task = read_task()
    workers, threads = map(int, task.kernel.split(","))
    network = Network(network_folder(task), threads)

    def predict(home: Path, target: Path) -> None:
        images = Photographs(landing_in(home))
        probabilities = []
        for pixels in DataLoader(images, BATCH_IMAGES, num_workers=workers):
            probabilities.extend(network.probabilities(pixels.numpy()))
        target.mkdir(parents=True)
        pq.write_table(pa.table(network.rows(images.files, probabilities)), target / "predictions.parquet")

    predict_twice(task, predict)


if __name__ == "__main__":
    main()
