"""Scores images in a guarded process, so that an image that breaks the model costs only its own prediction.

Runs in each executor. If the model raises, hangs or crashes on a batch, the batch is halved until the image is found.
"""

import atexit
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pandas as pd

from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from resources.mlflow.model_files import download_files

GIBIBYTE = 1024**3
# Of address space. Libraries reserve far more than they use, and CUDA reserves room for all host and GPU memory.
MEMORY_BYTES = {"cpu": 64 * GIBIBYTE, "cuda": 16 * 1024 * GIBIBYTE}
LOADING_SECONDS, IMAGE_SECONDS = 300.0, 30.0
ROWS_AT_ONCE = 32
# Makes MLflow refuse pickles in the process that loads a version, since unpickling a file can run anything.
NO_PICKLES = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}

KEPT_PROCESSES = 2  # at most: the serving version, and one that is compared with it

REQUIRED_COLUMNS = ("label", "probability", "probabilities")  # which every version returns
# Those that versions of earlier releases do not return.
LATER_COLUMNS = ("abstained", "most_probable_label", "distance_from_training", "unlike_training")

Predict = Callable[[pd.DataFrame], pd.DataFrame | ItemFailure]


@dataclass(frozen=True)
class LoadableVersion:
    """What a process needs to load a model version; `digest` is that of its files, empty if it is not known."""

    tracking_uri: str
    uri: str
    device: str
    digest: str = ""


class VersionNotLoaded(RuntimeError):
    """A version cannot be loaded; its own code and files may raise anything."""


@cache
def load_version(version: LoadableVersion) -> Any:  # Any: MLflow's wrapper around any logged model
    """Loads the version, once per process."""
    import mlflow

    os.environ.update(NO_PICKLES)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    mlflow.set_tracking_uri(version.tracking_uri)
    files = download_files(version.uri, Path(mkdtemp()))  # kept: a version may read its files at any time
    # The warnings compare the version's requirements with all installed packages, which takes longer than loading it.
    return mlflow.pyfunc.load_model(str(files), model_config={"device": version.device}, suppress_warnings=True)


def predict_batch(task: tuple[LoadableVersion, pd.DataFrame]) -> pd.DataFrame | ItemFailure:
    """Predictions for images (content, path), or how the version fails on them (runs in the guarded process)."""
    version, images = task
    try:
        model = load_version(version)
    except Exception as error:
        raise VersionNotLoaded(f"{version.uri} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        found = model.predict(images)
        answers = found[[*REQUIRED_COLUMNS, *(name for name in LATER_COLUMNS if name in found)]]
    except Exception as error:  # noqa: BLE001 - any error of a model is recorded as a fault
        return ItemFailure("raised", f"{type(error).__name__}: {error}"[:500])
    if len(answers) != len(images):
        return ItemFailure("wrong_shape", f"{len(answers)} predictions for {len(images)} images")
    return answers.set_axis(images.index).astype(object).reindex(columns=[*REQUIRED_COLUMNS, *LATER_COLUMNS])


def predict_by_bisection(images: pd.DataFrame, predict: Predict) -> pd.DataFrame:
    """Predictions for all images, in their order; a failing batch is halved until the failing image gets a `fault`."""
    result = predict(images)
    if not isinstance(result, ItemFailure):
        return result.assign(fault=None)
    if len(images) == 1:
        nothing: dict[str, Sequence[object]] = {name: [None] for name in (*REQUIRED_COLUMNS, *LATER_COLUMNS)}
        return pd.DataFrame({**nothing, "fault": [f"{result.reason}: {result.message}"]}, index=images.index)
    half = len(images) // 2
    return pd.concat(
        [predict_by_bisection(images.iloc[:half], predict), predict_by_bisection(images.iloc[half:], predict)]
    )


ModelProcess = GuardedProcess[tuple[LoadableVersion, pd.DataFrame], pd.DataFrame | ItemFailure]
_kept: dict[LoadableVersion, ModelProcess] = {}  # those that nobody uses now, the one used last at the end
_keeping = threading.Lock()
os.register_at_fork(after_in_child=_kept.clear)  # a process can only use children of its own


@contextmanager
def model_process(version: LoadableVersion) -> Iterator[ModelProcess]:
    """A process for the version, which has loaded it already if it was used before.

    A process that computes on the CPU, on files that are known, is kept until this process ends, or until
    KEPT_PROCESSES others were used later. Memory of a GPU is given back.
    """
    keep = version.device == "cpu" and bool(version.digest)
    with _keeping:
        guarded = _kept.pop(version, None)
    if guarded is None:
        guarded = GuardedProcess(
            predict_batch,
            memory_bytes=MEMORY_BYTES[version.device],
            name="model",
            outlives_thread=keep,
            temporary_files=True,
        )
    try:
        yield guarded
    except BaseException:  # it may still compute
        guarded.stop()
        raise
    if not keep:
        guarded.stop()
        return
    with _keeping:
        replaced = [_kept.pop(version)] if version in _kept else []
        _kept[version] = guarded
        while len(_kept) > KEPT_PROCESSES:
            replaced.append(_kept.pop(next(iter(_kept))))
    for process in replaced:
        process.stop()


def stop_kept_processes() -> None:
    """Ends the processes that are kept, and nobody uses now; their versions are loaded again when needed."""
    with _keeping:
        stopped = [*_kept.values()]
        _kept.clear()
    for process in stopped:
        process.stop()


atexit.register(stop_kept_processes)


@contextmanager
def predicting(version: LoadableVersion) -> Iterator[Predict]:
    """Predictions for batches of images (content, path) by the version in a guarded process."""
    with model_process(version) as guarded:

        def predict(images: pd.DataFrame) -> pd.DataFrame | ItemFailure:
            # A model computes in as many threads as there are cores, so its CPU time says little.
            seconds = LOADING_SECONDS + IMAGE_SECONDS * len(images)
            return guarded.run((version, images), cpu_seconds=math.inf, wall_seconds=seconds)

        yield predict


def guarded_predictions(version: LoadableVersion, batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Replaces the content of each batch with label, probability, probabilities and fault."""
    with predicting(version) as predict:
        for batch in batches:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                rows = batch.iloc[start : start + ROWS_AT_ONCE]
                answers = predict_by_bisection(rows[["content", "path"]], predict)
                yield pd.concat([rows.drop(columns="content"), answers], axis="columns")
