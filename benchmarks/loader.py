"""Loaders of decoded images for training, ours and others: a first and a second epoch."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.contest import Contestant
from benchmarks.feeding import SEEN_EVERY, to_pillow_pixels
from benchmarks.homes import home_of
from benchmarks.measurement import ALLOCATOR, Run, measured
from benchmarks.outputs import WrongOutput, require_same_numbers
from benchmarks.peers.environments import PeerMissing
from benchmarks.photographs import CACHE, Photographs, files_in, number_of

PROJECT = "benchmarks.project_loader"
# Mean absolute difference from Pillow's pixels: TensorFlow decodes less exactly, and some JPEGs are compressed twice.
TOLERANCE = 2.5


@dataclass(frozen=True)
class Loader(Contestant):
    """A contestant that may have to write files in its own format first."""

    prepares: bool = False


LOADERS = (
    Loader("image-assets, cache of original bytes", PROJECT, "original", prepares=True),
    Loader("image-assets, cache of resized JPEG", PROJECT, "jpeg", prepares=True),
    Loader("image-assets, cache of raw pixels", PROJECT, "pixels", prepares=True),
    Loader("torch DataLoader, Pillow", "benchmarks.peers.dataloader_peer"),
    Loader("tf.data, cached in memory", "benchmarks.peers.tfdata_peer"),
    Loader("WebDataset, Pillow", "benchmarks.peers.webdataset_peer", prepares=True),
    Loader("Mosaic Streaming, Pillow", "benchmarks.peers.streaming_peer", prepares=True),
)
LIMITS = (
    Loader("Petastorm alone: bytes, nothing decoded", PROJECT, "undecoded", prepares=True),
    Loader("decoding alone: no Petastorm, two threads", PROJECT, "decoding", prepares=True),
)


def loader(photographs: Photographs, count: int, repeats: int) -> dict:
    """Preparations and runs of every loader, interleaved, and the limits of our own."""
    home, landing = home_of(photographs, count)
    runs: dict[str, list[dict]] = {}
    preparations: dict[str, list[dict]] = {}
    for repeat in range(repeats):
        for contestant in (*LOADERS, *LIMITS):
            preparation, run = one_run(contestant, home, landing)
            runs.setdefault(contestant.name, []).append(asdict(run))
            if preparation:
                preparations.setdefault(contestant.name, []).append(asdict(preparation))
            result = run.error or [f"{epoch['images'] / epoch['seconds']:,.0f}" for epoch in run.answer["epochs"]]
            print(f"loader {repeat + 1}/{repeats}  {contestant.name}, images/s by epoch: {result}", flush=True)
    size = sum(file.stat().st_size for file in files_in(landing))
    return {"count": count, "bytes": size, "runs": runs, "preparations": preparations}


def one_run(contestant: Loader, home: Path, landing: Path) -> tuple[Run | None, Run]:
    """A loader's preparation, if any, and its run; `error` says why a run does not count."""
    work = CACHE / "output"
    prepared, output = work / "prepared", work / "fed"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    preparation, source = None, landing
    try:
        if contestant.prepares:
            source = prepared
            taken = home if contestant.module == PROJECT else landing
            preparation = measured([*contestant.command, "prepare", str(taken), str(prepared), contestant.kernel])
            if preparation.error:
                return preparation, Run(0.0, error=preparation.error)
        command = [*contestant.command, "feed", str(source), str(output), contestant.kernel]
        run = measured(command, ALLOCATOR if contestant.module == PROJECT else {})
        if not run.error:
            require_fed(output, landing, decoded=contestant.kernel != "undecoded")
        return preparation, run
    except (PeerMissing, WrongOutput) as error:
        return preparation, Run(0.0, error=str(error))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_fed(output: Path, landing: Path, *, decoded: bool = True) -> None:
    """Raise WrongOutput unless every photograph came once and the checked ones nearly match Pillow's pixels."""
    fed = np.load(output / "fed.npz")
    require_same_numbers(fed["numbers"].tolist(), landing)
    if not decoded:
        return
    files = {number: file for file in files_in(landing) if (number := number_of(file)) % SEEN_EVERY == 0}
    if sorted(fed["seen"].tolist()) != sorted(files):
        raise WrongOutput(f"{len(fed['seen'])} photographs were saved for checking: expected {len(files)}")
    for number, pixels in zip(fed["seen"].tolist(), fed["pixels"], strict=True):
        difference = np.abs(pixels.astype(np.int16) - to_pillow_pixels(files[number])).mean()
        if difference > TOLERANCE:
            raise WrongOutput(f"photograph {number}: pixels differ from Pillow's by {difference:.1f} on average")
