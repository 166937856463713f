"""Run all benchmarks or one of them, then update the results page and its chart (`make bench`)."""

import argparse
import time

from benchmarks.accuracy import accuracy
from benchmarks.caches import caches
from benchmarks.contest import CONTESTANTS, contest
from benchmarks.engines import engines
from benchmarks.following import following
from benchmarks.gallery import gallery
from benchmarks.growth import growth
from benchmarks.loader import loader
from benchmarks.page import PAGE, PICTURE, write_page
from benchmarks.photographs import Photographs
from benchmarks.predictions import predictions
from benchmarks.processes import processes
from benchmarks.promotion import LEAST_IMAGES, promotion
from benchmarks.report import conditions
from benchmarks.results import RESULTS, save
from benchmarks.sensor import sensor
from benchmarks.training import training
from scripts.terminal import explain_errors

SIZES = {
    "ingest": 10_000,
    "featured": 3_000,
    "grayscale": 3_000,
    "following": 10_000,
    "growth": 1_000_000,
    "sensor": 100_000,
    "gallery": 100_000,
    "caches": 240,
    "loader": 3_000,
    "engines": 512,
    "training": 2_500,
    "accuracy": 2_500,
    "processes": 5_000,
    "predictions": 5_000,
    "promotion": 10_000,
}
LEAST = {  # images, where one is too few: some benchmarks also measure a tenth or a hundredth of them
    **dict.fromkeys(("following", "growth", "sensor"), 100),
    **dict.fromkeys(("training", "accuracy", "promotion"), LEAST_IMAGES),
    "processes": 10 * LEAST_IMAGES,
}
ON_PHOTOGRAPHS = {
    "caches": caches,
    "loader": loader,
    "engines": engines,
    "training": training,
    "following": following,
    "accuracy": accuracy,
    "predictions": predictions,
    "promotion": promotion,
}
ON_SMALL = {"growth": growth, "sensor": sensor, "gallery": gallery, "processes": processes}


def arguments() -> argparse.Namespace:
    """The command-line arguments."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", choices=[*SIZES, "page"], help="run a single benchmark; `page` only rewrites the page"
    )
    parser.add_argument("--size", type=int, help="number of images (each benchmark has its own default)")
    parser.add_argument("--repeats", type=int, default=3, help="runs per contestant")
    parser.add_argument("--photographs", help="a folder of photographs to use instead of generated ones")
    chosen = parser.parse_args()
    for benchmark in SIZES:
        least = LEAST.get(benchmark, 1)
        if chosen.only in (None, benchmark) and chosen.size is not None and chosen.size < least:
            parser.error(f"--size {chosen.size}: {benchmark} needs {least} or more")
    return chosen


def main() -> None:
    """Run the benchmarks, save the results, write the page."""
    chosen = arguments()
    explain_errors()
    photographs, measured_with = Photographs(source=chosen.photographs), conditions()
    for benchmark, size in SIZES.items():
        if chosen.only in (None, benchmark):
            started = time.monotonic()
            count = chosen.size or size
            if benchmark in CONTESTANTS:
                found = contest(benchmark, photographs, count, chosen.repeats)
            elif benchmark in ON_PHOTOGRAPHS:
                found = ON_PHOTOGRAPHS[benchmark](photographs, count, chosen.repeats)
            else:
                found = ON_SMALL[benchmark](count, chosen.repeats)
            save(benchmark, {**found, "conditions": measured_with})
            print(f"{benchmark}: finished in {time.monotonic() - started:.0f} s\n", flush=True)
    print(write_page())
    print(f"\nResults: {RESULTS}\nPage: {PAGE}\nChart: {PICTURE}")


if __name__ == "__main__":
    main()
