"""Compares this project's training with the common recipe's: time and accuracy, starting from caches."""

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contest import OURS, RECIPE
from benchmarks.homes import home_of
from benchmarks.measurement import ALL_CORES, ALLOCATOR, Run, measured
from benchmarks.photographs import CACHE, Photographs
from benchmarks.project_training import caches_of
from benchmarks.recipe_training import BACKBONE

FIRST, AGAIN = f"{OURS}, the first time", f"{OURS}, embeddings exist"


@dataclass(frozen=True)
class Training:
    """One way to train: the contestant, the framework, and the program to run."""

    name: str
    framework: str
    module: str
    seed: int | None = None  # different each time, because nothing is trained twice with the same seed

    @property
    def kernel(self) -> str:
        """The kernel that its program gets."""
        return self.framework if self.seed is None else f"{self.framework}:{self.seed}"


TRAININGS = tuple(
    training
    for framework in ("tensorflow", "torch")
    for training in (
        Training(RECIPE, framework, f"benchmarks.recipe_{framework}"),
        Training(FIRST, framework, "benchmarks.project_training", seed=0),
        Training(AGAIN, framework, "benchmarks.project_training", seed=1),
    )
)


def training(photographs: Photographs, count: int, repeats: int) -> dict:
    """Run every training, interleaved, on the same caches."""
    home, _ = home_of(photographs, count)
    runs: dict[str, dict[str, list[dict]]] = {}
    work = CACHE / "trainings"
    shutil.rmtree(work, ignore_errors=True)
    try:
        caches_of(home, work / "home")
        for repeat in range(repeats):
            shutil.rmtree(work / "store", ignore_errors=True)
            for of in TRAININGS:
                run = one_run(of, work / "home", work / "store" / of.framework)
                runs.setdefault(of.framework, {}).setdefault(of.name, []).append(asdict(run))
                result = run.error or f"{run.answer['work_seconds']:.1f} s, {run.answer['epochs'][-1]}"
                print(f"training {repeat + 1}/{repeats}  {of.name}, {of.framework}: {result}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"count": count, "runs": runs}


def one_run(of: Training, home: Path, store: Path) -> Run:
    """One training, with its MLflow store and checkpoints in `store`."""
    store.mkdir(parents=True, exist_ok=True)
    backbone = {BACKBONE: os.environ[BACKBONE]} if BACKBONE in os.environ else {}
    own = ALLOCATOR if of.seed is not None else {}
    return measured(
        [sys.executable, "-m", of.module, "training", str(home), str(store), of.kernel], backbone | own | ALL_CORES
    )
