"""What `make bench` runs: every benchmark, or one of them; then the page with its picture."""

import argparse
import time

from benchmarks.accuracy import accuracy
from benchmarks.caches import caches
from benchmarks.contest import CONTESTANTS, contest
from benchmarks.engines import engines
from benchmarks.following import following
from benchmarks.gallery import gallery
from benchmarks.loader import loader
from benchmarks.page import PAGE, PICTURE, write_page
from benchmarks.photographs import Photographs
from benchmarks.predictions import predictions
from benchmarks.processes import processes
from benchmarks.promotion import promotion
from benchmarks.results import RESULTS, save
from benchmarks.sensor import sensor
from benchmarks.training import training
from scripts.terminal import end_with_what_to_do

SIZES = {
    "ingest": 10_000,
    "featured": 3_000,
    "grayscale": 3_000,
    "following": 100_000,
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
ON_PHOTOGRAPHS = {
    "caches": caches,
    "loader": loader,
    "engines": engines,
    "training": training,
    "accuracy": accuracy,
    "predictions": predictions,
    "promotion": promotion,
}
ON_SMALL = {"following": following, "sensor": sensor, "gallery": gallery, "processes": processes}


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=[*SIZES, "page"], help="one benchmark; `page` writes the page again")
    parser.add_argument("--size", type=int, help="how many images, in place of the benchmark's own number")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--photographs", help="a folder of photographs, in place of generated ones")
    return parser.parse_args()


def main() -> None:
    """Measure, keep, write."""
    asked = arguments()
    end_with_what_to_do()
    photographs = Photographs(source=asked.photographs)
    for benchmark, size in SIZES.items():
        if asked.only in (None, benchmark):
            started = time.monotonic()
            count = asked.size or size
            if benchmark in CONTESTANTS:
                found = contest(benchmark, photographs, count, asked.repeats)
            elif benchmark in ON_PHOTOGRAPHS:
                found = ON_PHOTOGRAPHS[benchmark](photographs, count, asked.repeats)
            else:
                found = ON_SMALL[benchmark](count, asked.repeats)
            save(benchmark, found)
            print(f"{benchmark}: done in {time.monotonic() - started:.0f} s\n", flush=True)
    print(write_page())
    print(f"\nResults {RESULTS}, page {PAGE}, picture {PICTURE}")


if __name__ == "__main__":
    main()
