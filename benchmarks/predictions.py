"""Predictions of many photographs: by this project, by the common recipe, and by peers with the same weights."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.contest import OURS, RECIPE, Contestant
from benchmarks.homes import home_of
from benchmarks.measurement import Run, measured
from benchmarks.ours import copied_home
from benchmarks.outputs import WrongOutput, require_same_numbers
from benchmarks.peers.environments import PeerMissing
from benchmarks.photographs import CACHE, Photographs, files_in, number_of
from benchmarks.predicting import ALL, FIRST, FIRST_IMAGES
from benchmarks.versions import OTHERS, tracking_uri_of, versions_of

LEAST_AGREEMENT = 0.995  # the share of images under the recipe's label
MOST_DIFFERENCE = 1e-3  # of a probability from the recipe's
OWN, TAUGHT = "benchmarks.own_predictions", "benchmarks.recipe_predictions"
LOADER = "benchmarks.peers.dataloader_predictions_peer"
PREDICTING = {
    "torch": (
        Contestant(RECIPE, TAUGHT, "torch"),
        Contestant(OURS, OWN, "torch", table="tables/image_predictions"),
        Contestant("Daft", "benchmarks.peers.daft_predictions_peer"),
        Contestant("Ray Data", "benchmarks.peers.ray_predictions_peer"),
        Contestant("torch DataLoader, 1 worker, 2 threads", LOADER, "1,2"),
        Contestant("torch DataLoader, 2 workers, 2 threads", LOADER, "2,2"),
    ),
    "tensorflow": (
        Contestant(RECIPE, TAUGHT, "tensorflow"),
        Contestant(OURS, OWN, "tensorflow", table="tables/image_predictions"),
    ),
}

Answers = dict[int, tuple[str, np.ndarray]]  # label and probabilities of each photograph


@dataclass(frozen=True)
class Ground:
    """What everybody works with."""

    home: Path
    first: Path  # a home of a few images
    landing: Path
    versions: Path


def predictions(photographs: Photographs, count: int, repeats: int) -> dict:
    """Every contestant's runs, interleaved; each framework's answers are compared with the recipe's."""
    home, landing = home_of(photographs, count)
    first, _ = home_of(photographs, FIRST_IMAGES)
    ground = Ground(home, first, landing, versions_of(photographs))
    runs: dict[str, dict[str, list[dict]]] = {framework: {} for framework in PREDICTING}
    taught: dict[str, Answers] = {}
    for repeat in range(repeats):
        for framework, contestants in PREDICTING.items():
            for of in contestants:
                run, answers = one_run(of, ground, taught.get(framework))
                if of.name == RECIPE and answers:
                    taught.setdefault(framework, answers)
                runs[framework].setdefault(of.name, []).append(asdict(run))
                told = run.error or (
                    f"{count / run.answer['work_seconds']:,.0f} images a second, the first ones after "
                    f"{run.answer['first_seconds']:.1f} s"
                )
                print(f"predictions {repeat + 1}/{repeats}  {of.name}, {framework}: {told}", flush=True)
    size = sum(file.stat().st_size for file in files_in(landing))
    return {"count": count, "first": FIRST_IMAGES, "bytes": size, "runs": runs}


def one_run(of: Contestant, ground: Ground, taught: Answers | None) -> tuple[Run, Answers]:
    """One run and its answers; the error says what kept it from counting."""
    work = CACHE / "output"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name, home in ((FIRST, ground.first), (ALL, ground.home)):
            copied_home(home, work / name)
        (work / "network").symlink_to(ground.versions / OTHERS / "network")
        command = [*of.command, "predictions", str(work), str(work / "predictions"), of.kernel]
        run = measured(command, {"MLFLOW_TRACKING_URI": tracking_uri_of(ground.versions)})
        if run.error:
            return run, {}
        answers = answers_in(work / ALL / of.table if of.module == OWN else work / "predictions" / ALL)
        require_answers(answers, ground.landing, None if of.name == RECIPE else taught or {})
        return run, dict(answers)
    except (PeerMissing, WrongOutput) as error:
        return Run(0.0, error=str(error)), {}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def answers_in(folder: Path) -> list[tuple[int, tuple[str, np.ndarray]]]:
    """Every row of a Delta table, or of Parquet files."""
    delta = (folder / "_delta_log").is_dir()
    files = DeltaTable(folder).file_uris() if delta else [str(file) for file in folder.rglob("*.parquet")]
    columns = ["path", "label", "probabilities"]
    rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    return [(number_of(Path(row["path"])), (row["label"], np.array(row["probabilities"]))) for row in rows]


def require_answers(answers: list[tuple[int, tuple[str, np.ndarray]]], landing: Path, taught: Answers | None) -> None:
    """WrongOutput unless every photograph has one answer, which is what the recipe answers."""
    require_same_numbers([number for number, _ in answers], landing)
    if taught is None:
        return
    if not taught:
        raise WrongOutput("there is nothing to compare it with: the recipe came to no end")
    require_agreement(dict(answers), taught)


def require_agreement(answers: Answers, taught: Answers) -> None:
    """WrongOutput where other labels or other probabilities are answered than those that are taught."""
    agreeing = sum(label == taught[number][0] for number, (label, _) in answers.items()) / len(answers)
    if agreeing < LEAST_AGREEMENT:
        raise WrongOutput(f"{agreeing:.2%} of the labels are those of the recipe: expected {LEAST_AGREEMENT:.1%}")
    for number, (_, probabilities) in answers.items():
        if probabilities.shape != taught[number][1].shape:
            raise WrongOutput(f"{probabilities.size} probabilities of photograph {number}: not as the recipe has it")
        difference = float(np.abs(probabilities - taught[number][1]).max())
        if not difference <= MOST_DIFFERENCE:
            raise WrongOutput(f"a probability differs by {difference:.4f} from the recipe's: photograph {number}")
