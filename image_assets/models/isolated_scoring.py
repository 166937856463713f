"""A model version asked so that an image on which it fails costs its own answer only (runs in each executor).

The version is loaded in a guarded process. A batch on which it raises, hangs or crashes is asked again in halves, until
the image is found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from image_assets.images.isolated_process import Failure, GuardedProcess

GIBIBYTE = 1024**3
# Of address space, most of which libraries reserve and never touch; CUDA as much as there are memories to address.
MEMORY_BYTES = {"cpu": 64 * GIBIBYTE, "cuda": 16 * 1024 * GIBIBYTE}
LOADING_SECONDS, IMAGE_SECONDS = 300.0, 30.0
ROWS_AT_ONCE = 32

Ask = Callable[[pd.DataFrame], pd.DataFrame | Failure]


@dataclass(frozen=True)
class VersionToAsk:
    """A model version, as every process can load it."""

    tracking_uri: str
    uri: str
    device: str


@cache
def loaded(version: VersionToAsk) -> Any:  # Any: MLflow's wrapper around whatever was logged
    """The version, loaded once in each process."""
    import mlflow

    mlflow.set_tracking_uri(version.tracking_uri)
    return mlflow.pyfunc.load_model(version.uri, model_config={"device": version.device})


def answer(task: tuple[VersionToAsk, pd.DataFrame]) -> pd.DataFrame | Failure:
    """What the version says of images (content, path), or how it fails on them; runs in the guarded process."""
    version, images = task
    model = loaded(version)
    try:
        answers = model.predict(images)[["label", "probability", "probabilities"]]
    except Exception as error:  # noqa: BLE001 - whatever a model raises is a fault of its answer
        return Failure("raised", f"{type(error).__name__}: {error}"[:500])
    if len(answers) != len(images):
        return Failure("wrong_shape", f"{len(answers)} answers to {len(images)} images")
    return answers.set_axis(images.index).astype(object)


def bisected(images: pd.DataFrame, ask: Ask) -> pd.DataFrame:
    """Answers to all images, in their order; `fault` says why the version failed on one alone."""
    said = ask(images)
    if not isinstance(said, Failure):
        return said.assign(fault=None)
    if len(images) == 1:
        nothing: dict[str, Sequence[object]] = {"label": [None], "probability": [None], "probabilities": [None]}
        return pd.DataFrame({**nothing, "fault": [f"{said.reason}: {said.message}"]}, index=images.index)
    half = len(images) // 2
    return pd.concat([bisected(images.iloc[:half], ask), bisected(images.iloc[half:], ask)])


def careful_answers(version: VersionToAsk, batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Each batch without its content, with label, probability, probabilities and fault."""
    with GuardedProcess(answer, memory_bytes=MEMORY_BYTES[version.device], name="model") as guarded:

        def ask(images: pd.DataFrame) -> pd.DataFrame | Failure:
            return guarded.answer((version, images), seconds=LOADING_SECONDS + IMAGE_SECONDS * len(images))

        for batch in batches:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                rows = batch.iloc[start : start + ROWS_AT_ONCE]
                answers = bisected(rows[["content", "path"]], ask)
                yield pd.concat([rows.drop(columns="content"), answers], axis="columns")
