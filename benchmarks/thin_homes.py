"""Homes with any number of images in their tables and nearly no bytes: the files are links to one small photograph.

The tables are those of an ordinary home. Only the fingerprints are random, and the content is left out, as above the
content limit.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from benchmarks.measurement import measured
from benchmarks.ours import use_home
from benchmarks.photographs import CACHE, LABELS, LONG_AGO, PER_FOLDER, SMALL, photograph
from benchmarks.task import read_task, timed

THIN_HOMES = CACHE / "thin"
LINKS = 50_000  # to one file; most file systems allow 65,000
ROWS = 250_000  # written at once
DAYS = 20  # on which the images arrived
HASH_BYTES = 184
SPLITS = ("training",) * 7 + ("validation", "test") + ("training",)
FIRST_SEEN = datetime(2026, 1, 1, tzinfo=UTC)
CLASSIFIER = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Classifier(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        rows = [("daisy", 0.75, [0.75, 0.25, 0, 0, 0]) for _ in model_input["path"]]
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


set_model(Classifier())
"""


def thin_home(count: int) -> tuple[Path, Path]:
    """A home with `count` images, and its landing folder. Benchmarks add files to it; it is built anew each time."""
    home, landing = THIN_HOMES / str(count) / "home", THIN_HOMES / str(count) / "landing"
    shutil.rmtree(THIN_HOMES / str(count), ignore_errors=True)
    run = measured([sys.executable, "-m", "benchmarks.thin_homes", str(count), str(landing), str(home), ""])
    if run.error:
        raise RuntimeError(f"building the home with {count:,} images failed: {run.error}")
    return home, landing


def name_of(number: int) -> str:
    """The file's name below the landing folder."""
    return f"{LABELS[number % len(LABELS)]}/{number // PER_FOLDER:05d}/{number:08d}.jpg"


def write_links(landing: Path, count: int) -> int:
    """Fill the landing folder with links to copies of one photograph; returns its number of bytes."""
    content, first = photograph(SMALL, 0)[1], landing
    for number in range(count):
        file = landing / name_of(number)
        if number % PER_FOLDER < len(LABELS):
            file.parent.mkdir(parents=True, exist_ok=True)
        if number % LINKS == 0:
            first = file
            first.write_bytes(content)
            os.utime(first, (LONG_AGO, LONG_AGO))
        else:
            os.link(first, file)
    return len(content)


def columns_of(numbers: np.ndarray, landing: Path, length: int, version: dict[str, Any]) -> dict[str, Any]:
    """The values of every column of the tables for the images with these numbers."""
    from PIL import Image

    from benchmarks.photographs import to_jpeg

    count, random = len(numbers), np.random.default_rng(int(numbers[0]))
    paths = [f"file:{landing}/{name_of(number)}" for number in numbers.tolist()]
    ids = [random.bytes(32).hex() for _ in range(count)]
    hashes = [random.bytes(HASH_BYTES) for _ in range(count)]
    labels = [LABELS[number % len(LABELS)] for number in numbers.tolist()]
    seen = [FIRST_SEEN + timedelta(days=number % DAYS) for number in numbers.tolist()]
    thumbnail = to_jpeg(Image.new("RGB", (64, 64), (120, 130, 140)))
    return {
        "path": paths,
        "image_id": ids,
        "state": "current",
        "attempts": 1,
        "first_seen": seen,
        "last_seen": seen,
        "length": length,
        "modification_time": datetime.fromtimestamp(LONG_AGO, UTC),
        "label": labels,
        "label_index": (numbers % len(LABELS)).tolist(),
        **{"width": 160, "height": 107, "mode": "RGB", "format": "JPEG", "orientation": 1, "pages": 1},
        **{"black_value": 0.0, "white_value": 255.0},
        "perceptual_hash": [one[:8].hex() for one in hashes],
        "mirrored_hash": [one[-8:].hex() for one in hashes],
        "hashes": hashes,
        "thumbnail": thumbnail,
        "duplicate_group": ids,
        "split": [SPLITS[number % len(SPLITS)] for number in numbers.tolist()],
        "duplicates": "near",
        "probability": random.uniform(0.5, 1, count).astype(np.float32).tolist(),
        "probabilities": [[0.75, 0.25, 0.0, 0.0, 0.0]] * count,
        "framework": "torch",
        "device": "cpu",
        "predicted_at": seen,
        **version,
    }


def tables_of(values: dict[str, Any]) -> Iterator[tuple[Any, pa.Table]]:
    """Each table with its rows."""
    from image_assets import schemas

    for table in (
        *(schemas.RAW_IMAGES, schemas.IMAGE_FILES, schemas.FEATURED_IMAGES, schemas.GRAYSCALE_IMAGES),
        *(schemas.IMAGE_SPLITS, schemas.IMAGE_PREDICTIONS, schemas.CURRENT_PREDICTIONS),
    ):
        schema, count = to_arrow_schema(table.columns), len(values["path"])
        columns = []
        for field in schema:
            value = values.get(field.name)
            columns.append(pa.array(value if isinstance(value, list) else [value] * count, field.type))
        yield table, pa.table(columns, schema=schema)


def fill(home: Path, landing: Path, count: int) -> None:
    """Build the home: the landing folder, a model version in production, and the rows of every table."""
    from definitions import resources
    from image_assets.models.version_ids import key_of
    from image_assets.schemas import (
        FEATURED_IMAGES,
        GRAYSCALE_IMAGES,
        IMAGE_FILES,
        IMAGE_PREDICTIONS,
        IMAGE_SPLITS,
        RAW_IMAGES,
    )
    from resources.delta.delta_log import position, writer_properties
    from resources.delta.delta_tables import PART, to_part
    from resources.settings import read_settings
    from scripts.home import prepare

    landing.mkdir(parents=True)
    prepare(read_settings())
    length = write_links(landing, count)
    tables, key = resources["delta_tables"], key_of(promoted_version(resources["model_registry"], home))
    upstreams = {IMAGE_FILES: RAW_IMAGES, FEATURED_IMAGES: RAW_IMAGES}
    upstreams |= dict.fromkeys((GRAYSCALE_IMAGES, IMAGE_SPLITS, IMAGE_PREDICTIONS), FEATURED_IMAGES)
    for start in range(0, count, ROWS):
        values = columns_of(np.arange(start, min(start + ROWS, count)), landing, length, key)
        for table, rows in tables_of(values):
            tables.create(table)
            properties = {}
            if upstream := upstreams.get(table):
                uri = tables.uri(upstream)
                properties = position(uri, DeltaTable(uri).version())
            if table is IMAGE_PREDICTIONS:
                properties[PART] = to_part(key)
            write_deltalake(
                tables.uri(table),
                rows,
                mode="append",
                writer_properties=writer_properties(table, 20_000),
                commit_properties=CommitProperties(properties),
            )


def promoted_version(registry: Any, home: Path) -> Any:
    """A model version in production that answers at once."""
    import mlflow
    from mlflow import MlflowClient

    from resources.mlflow.model_registry import FILES_DIGEST, SERVING_STAGE

    (home / "classifier.py").write_text(CLASSIFIER)
    model = home / "classifier"
    mlflow.pyfunc.save_model(model, python_model=str(home / "classifier.py"), pip_requirements=["mlflow"])
    client = MlflowClient(registry.tracking_uri)
    run = client.create_run(client.create_experiment("thin", (home / "artifacts").as_uri()))
    client.set_terminated(run.info.run_id)
    tags = {FILES_DIGEST: registry.files_digest(model.as_uri()), "framework": "torch", "labels": json.dumps(LABELS)}
    version = registry.register(model.as_uri(), run.info.run_id, tags)
    registry.promote(version.version, SERVING_STAGE)
    return registry.serving()


def main() -> None:
    """Build a home, and let one run record what it finds."""
    task = read_task()
    home, landing = Path(task.target), Path(task.source)
    use_home(home, landing)
    with timed():
        fill(home, landing, int(task.benchmark))


if __name__ == "__main__":
    main()
