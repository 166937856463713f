"""Cache content compared: size, write and read time, and difference from the original pixels."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import pandas as pd

from benchmarks.measurement import measured
from benchmarks.photographs import CACHE, Photographs, landing_of
from benchmarks.results import good
from benchmarks.task import read_task, timed
from image_assets.images.cached_pixels import to_cached_pixels, to_cached_rows
from image_assets.images.pixels import to_pixels
from image_assets.models.backbones import CURRENT_BACKBONE
from resources.delta.arrow_rows import map_partitions
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.delta.row_groups import Content

READS = 3
SIDE_PIXELS = CURRENT_BACKBONE.side_pixels


def caches(photographs: Photographs, count: int, repeats: int) -> dict[str, Any]:
    """Measure each cache content several times, each run in a separate process."""
    landing = landing_of(photographs, count)
    runs: dict[str, list[dict]] = {}
    for repeat in range(repeats):
        for content in get_args(Content):
            command = [
                sys.executable,
                "-m",
                "benchmarks.caches",
                "caches",
                str(landing),
                str(CACHE / "output"),
                content,
            ]
            run = measured(command)
            runs.setdefault(content, []).append(asdict(run))
            print(f"caches {repeat + 1}/{repeats}  {content}: {run.error or run.answer}", flush=True)
    return {"count": count, "runs": runs}


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """The median figures of each content, as table rows."""
    rows = []
    for content, runs in found["runs"].items():
        if answers := [run["answer"] for run in good(runs)]:
            middle = {name: median(one[name] for one in answers) for name in answers[0]}
            rates = [f"{middle[name]:,.0f}" for name in ("read_1", "read_2")]
            size, write = f"{middle['kilobytes']:.1f}", f"{middle['write_seconds']:.1f}"
            rows.append([f"`{content}`", size, write, *rates, f"{middle['difference']:.2f}"])
    return rows


def decoded(rows: pd.DataFrame, content: Content) -> pd.DataFrame:
    """The pixels of a row group, as training reads them."""
    pixels = [to_cached_pixels(cached, SIDE_PIXELS, content, "rgb") for cached in rows["content"]]
    return pd.DataFrame({"image_id": rows["image_id"], "pixels": pixels})


def batches(cache: Cache, workers: int) -> Iterator[Any]:
    """One pass over the cache through Petastorm."""
    from petastorm import make_batch_reader
    from petastorm.transform import TransformSpec

    fields = [("pixels", np.uint8, (SIDE_PIXELS, SIDE_PIXELS, 3), False)]
    spec = TransformSpec(partial(decoded, content=cache.content), edit_fields=fields, removed_fields=["content"])
    with make_batch_reader(
        cache.converter().file_urls,
        num_epochs=1,
        workers_count=workers,
        schema_fields=["image_id", "content"],
        transform_spec=spec,
    ) as reader:
        yield from reader


def images_per_second(cache: Cache, workers: int) -> float:
    """The read rate, as the median of several passes."""
    taken = []
    for _ in range(READS):
        started = time.perf_counter()
        assert sum(len(batch.pixels) for batch in batches(cache, workers)) == cache.rows
        taken.append(time.perf_counter() - started)
    return cache.rows / median(taken)


def difference(cache: Cache, landing: Path) -> float:
    """The mean absolute difference (0 to 255) from the pixels of the original files."""
    files = {sha256(content).hexdigest(): content for content in (file.read_bytes() for file in landing.rglob("*.jpg"))}
    means = [
        np.abs(pixels.astype(int) - to_pixels(files[image_id], SIDE_PIXELS)).mean()
        for batch in batches(cache, 1)
        for image_id, pixels in zip(batch.image_id, batch.pixels, strict=True)
    ]
    return float(np.mean(means))


def main() -> None:
    """Write a cache of the photographs twice, the first time as a warm-up, and read it."""
    from resources.delta.spark_session import spark_session

    task = read_task()
    session = spark_session("local[2]", scratch=f"{task.target}/spark")
    content: Any = task.kernel
    store = PetastormCaches(root=f"{task.target}/caches", content=content)
    files = session.spark_session.read.format("binaryFile").option("recursiveFileLookup", "true").load(task.source)
    images = files.selectExpr("sha2(content, 256) image_id", "content", "0L label_index")
    if content != "original":
        cached = partial(to_cached_rows, side_pixels=SIDE_PIXELS, content=content, color="rgb")
        images = map_partitions(images, cached, images.schema)
    store.write(images, "training-warm", ranks=2)
    with timed() as figures:
        started = time.perf_counter()
        cache = store.write(images, "training-measured", ranks=2)
        figures["write_seconds"] = time.perf_counter() - started
        size = sum(Path(file.removeprefix("file://")).stat().st_size for file in cache.files)
        figures["kilobytes"] = size / cache.rows / 1000
        figures |= {f"read_{workers}": images_per_second(cache, workers) for workers in (1, 2)}
        figures["difference"] = difference(cache, Path(task.source))


if __name__ == "__main__":
    main()
