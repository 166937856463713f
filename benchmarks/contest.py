"""Runs every contestant on the same task, interleaved and each in a separate process."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.former import former_root
from benchmarks.homes import home_of
from benchmarks.measurement import ROOT, Run, measured
from benchmarks.outputs import WrongOutput, require_features, require_gray, require_ingested
from benchmarks.peers.environments import PEERS, PeerMissing, python_of
from benchmarks.photographs import CACHE, Photographs, landing_of

OURS = "image-assets"
RECIPE = "common recipe"
FORMER = "image-assets, an earlier commit"


@dataclass(frozen=True)
class Contestant:
    """One way of doing a benchmark's task.

    `kernel` selects the function applied to an image; `table` is the result's path below the target folder.
    """

    name: str
    module: str
    kernel: str = ""
    table: str = "."
    former: bool = False  # runs the code of an earlier commit

    @property
    def command(self) -> list[str]:
        """The command that runs it. Raises PeerMissing if its environment cannot be installed."""
        peer = self.module.removeprefix("benchmarks.peers.").removesuffix("_peer")
        python = str(python_of(peer)) if peer in PEERS else sys.executable
        return [python, "-m", self.module]

    @property
    def root(self) -> Path | None:
        """The checkout whose code runs; None if there is no earlier commit."""
        return former_root() if self.former else ROOT


def ours(module: str, kernel: str = "", table: str = ".") -> tuple[Contestant, Contestant]:
    """This project, as it is and as it was."""
    return Contestant(OURS, module, kernel, table), Contestant(FORMER, module, kernel, table, former=True)


def peers(*kernels: str) -> Iterator[Contestant]:
    """Each peer with each of the given kernels."""
    names = {"daft": "Daft", "ray": "Ray Data", "datasets": "Hugging Face datasets"}
    suffixes = {"own": ", our function", "pillow": ", Pillow", "": ""}
    for peer, name in names.items():
        for kernel in kernels:
            yield Contestant(f"{name}{suffixes[kernel]}", f"benchmarks.peers.{peer}_peer", kernel)


CONTESTANTS = {
    "ingest": (
        *ours("benchmarks.ours", table="tables/raw_images"),
        Contestant(RECIPE, "benchmarks.recipe"),
        *peers(""),
    ),
    "featured": (
        *ours("benchmarks.ours", table="tables/featured_images"),
        Contestant(RECIPE, "benchmarks.recipe"),
    ),
    "grayscale": (
        *ours("benchmarks.ours", "own", table="tables/grayscale_images"),
        Contestant(RECIPE, "benchmarks.recipe", "pillow"),
        Contestant("Daft, its own image functions", "benchmarks.peers.daft_peer", "native"),
        *peers("own", "pillow"),
    ),
}


def contest(benchmark: str, photographs: Photographs, count: int, repeats: int) -> dict:
    """Run every contestant on `count` photographs, interleaved; outputs are checked, then deleted."""
    landing = landing_of(photographs, count)
    contestants = [contestant for contestant in CONTESTANTS[benchmark] if contestant.root]
    runs: dict[str, list[dict]] = {contestant.name: [] for contestant in contestants}
    for repeat in range(repeats):
        for contestant in contestants:
            root = contestant.root or ROOT
            source = landing if benchmark == "ingest" else home_of(photographs, count, root)[0]
            run = one_run(benchmark, contestant, source, landing)
            runs[contestant.name].append(asdict(run))
            result = run.error or f"{count / run.answer['work_seconds']:,.0f} images/s"
            print(f"{benchmark} {repeat + 1}/{repeats}  {contestant.name}: {result}", flush=True)
    return {"count": count, "bytes": sum(file.stat().st_size for file in landing.rglob("*.jpg")), "runs": runs}


def one_run(benchmark: str, contestant: Contestant, source: Path, landing: Path) -> Run:
    """One run into an empty folder; `error` says why it does not count."""
    target = CACHE / "output"
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    require: dict[str, Callable[[Path], None]] = {
        "ingest": lambda output: require_ingested(output, landing),
        "featured": lambda output: require_features(output, landing),
        "grayscale": lambda output: require_gray(output, landing, contestant.kernel),
    }
    try:
        command = [*contestant.command, benchmark, str(source), str(target), contestant.kernel]
        run = measured(command, {"HF_HOME": str(target / "cache"), "HF_HUB_OFFLINE": "1"}, contestant.root or ROOT)
        if not run.error:
            require[benchmark](target / contestant.table)
        return run
    except (PeerMissing, WrongOutput) as error:
        return Run(0.0, error=str(error))
    finally:
        shutil.rmtree(target, ignore_errors=True)
