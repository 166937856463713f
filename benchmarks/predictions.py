"""Predicts many photographs: with this project, the common recipe, and peers that use the same weights."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.contest import FORMER, OURS, RECIPE, Contestant, ours
from benchmarks.homes import home_of
from benchmarks.measurement import ALL_CORES, ROOT, Run, measured
from benchmarks.ours import copied_home
from benchmarks.outputs import WrongOutput, require_same_numbers
from benchmarks.peers.environments import PeerMissing
from benchmarks.photographs import CACHE, Photographs, files_in, number_of
from benchmarks.predicting import ALL, FIRST, FIRST_IMAGES
from benchmarks.versions import OTHERS, tracking_uri_of, versions_of

PROJECT, TAUGHT = "benchmarks.project_predictions", "benchmarks.recipe_predictions"
LOADER = "benchmarks.peers.dataloader_predictions_peer"
PREDICTING = {
    "torch": (
        *ours(PROJECT, "torch", table="tables/image_predictions"),
        Contestant(RECIPE, TAUGHT, "torch"),
        Contestant("Daft", "benchmarks.peers.daft_predictions_peer"),
        Contestant("Ray Data", "benchmarks.peers.ray_predictions_peer"),
        Contestant("torch DataLoader, 1 worker, 2 threads", LOADER, "1,2"),
        Contestant("torch DataLoader, 2 workers, 2 threads", LOADER, "2,2"),
    ),
    "tensorflow": (
        *ours(PROJECT, "tensorflow", table="tables/image_predictions"),
        Contestant(RECIPE, TAUGHT, "tensorflow"),
    ),
}

Answers = dict[int, tuple[str, np.ndarray]]  # label and probabilities of each photograph


class Tolerance(NamedTuple):
    """How much predictions may differ from this project's."""

    agreement: float  # least share of images with the same label
    difference: float  # greatest mean difference between probabilities


SAME_PIXELS = Tolerance(agreement=0.995, difference=1e-4)
# The recipe decodes and resizes with Pillow, so a few close calls fall otherwise, each for all copies of a photograph.
OTHER_PIXELS = Tolerance(agreement=0.98, difference=0.01)


@dataclass(frozen=True)
class Ground:
    """The inputs that all contestants share."""

    home: Path
    first: Path  # a home with a few images
    landing: Path
    versions: Path


def predictions(photographs: Photographs, count: int, repeats: int) -> dict:
    """Run every contestant, interleaved; all predictions are compared with this project's in the same framework."""
    home, landing = home_of(photographs, count)
    first, _ = home_of(photographs, FIRST_IMAGES)
    ground = Ground(home, first, landing, versions_of(photographs))
    runs: dict[str, dict[str, list[dict]]] = {framework: {} for framework in PREDICTING}
    own: dict[str, Answers] = {}
    for repeat in range(repeats):
        for framework, contestants in PREDICTING.items():
            for of in (contestant for contestant in contestants if contestant.root):
                run, answers = one_run(of, ground, own.get(framework))
                if of.name == OURS and answers:
                    own.setdefault(framework, answers)
                runs[framework].setdefault(of.name, []).append(asdict(run))
                result = run.error or (
                    f"{count / run.answer['work_seconds']:,.0f} images/s, the first ones after "
                    f"{run.answer['first_seconds']:.1f} s"
                )
                print(f"predictions {repeat + 1}/{repeats}  {of.name}, {framework}: {result}", flush=True)
    size = sum(file.stat().st_size for file in files_in(landing))
    return {"count": count, "first": FIRST_IMAGES, "bytes": size, "runs": runs}


def one_run(of: Contestant, ground: Ground, own: Answers | None) -> tuple[Run, Answers]:
    """One run and its predictions; `error` says why it does not count. `own` are this project's, if there are any."""
    work = CACHE / "output"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name, home in ((FIRST, ground.first), (ALL, ground.home)):
            copied_home(home, work / name)
        (work / "network").symlink_to(ground.versions / OTHERS / "network")
        command = [*of.command, "predictions", str(work), str(work / "predictions"), of.kernel]
        threads = ALL_CORES if of.module == PROJECT else {}  # it predicts in one process
        run = measured(command, {"MLFLOW_TRACKING_URI": tracking_uri_of(ground.versions)} | threads, of.root or ROOT)
        if run.error:
            return run, {}
        answers = answers_in(work / ALL / of.table if of.module == PROJECT else work / "predictions" / ALL)
        require_same_numbers([number for number, _ in answers], ground.landing)
        if own is not None:
            require_agreement(dict(answers), own, OTHER_PIXELS if of.name in (RECIPE, FORMER) else SAME_PIXELS)
        elif of.name != OURS:
            raise WrongOutput(f"nothing to compare the predictions with: {OURS} did not finish")
        return run, dict(answers)
    except (PeerMissing, WrongOutput) as error:
        return Run(0.0, error=str(error)), {}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def answers_in(folder: Path) -> list[tuple[int, tuple[str, np.ndarray]]]:
    """All predictions in a Delta table or a folder of Parquet files, by photograph number."""
    delta = (folder / "_delta_log").is_dir()
    files = DeltaTable(folder).file_uris() if delta else [str(file) for file in folder.rglob("*.parquet")]
    columns = ["path", "label", "probabilities"]
    rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    return [(number_of(Path(row["path"])), (row["label"], np.array(row["probabilities"]))) for row in rows]


def require_agreement(answers: Answers, own: Answers, tolerance: Tolerance) -> None:
    """Raise WrongOutput if labels or probabilities differ too much from this project's, for the same photographs."""
    agreeing = sum(label == own[number][0] for number, (label, _) in answers.items()) / len(answers)
    if agreeing < tolerance.agreement:
        raise WrongOutput(f"{agreeing:.2%} of the labels agree with {OURS}: expected {tolerance.agreement:.1%}")
    for number, (_, probabilities) in answers.items():
        if probabilities.shape != own[number][1].shape:
            raise WrongOutput(
                f"{probabilities.size} probabilities of photograph {number}: {OURS} has {own[number][1].size}"
            )
    difference = np.mean([np.abs(probabilities - own[number][1]) for number, (_, probabilities) in answers.items()])
    if not difference <= tolerance.difference:
        raise WrongOutput(f"probabilities differ from those of {OURS} by {difference:.2g} on average")
