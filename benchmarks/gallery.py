"""The gallery with many images: response times of filters, of a page with thumbnails, and of one image."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from benchmarks.homes import HOMES
from benchmarks.markdown import markdown
from benchmarks.measurement import measured
from benchmarks.photographs import LABELS, SMALL_SIZE, crop, numbered, to_jpeg, to_noise
from benchmarks.results import Spread, good
from benchmarks.task import read_task, timed
from gallery.queries import PAGE_IMAGES
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table, file_layout
from resources.files.file_system import to_path
from resources.mlflow.model_registry import MODEL_NAME

PICTURES = 60  # different pictures; all others are copies with different bytes
CONNECTIONS = 6  # as in a browser
REPEATS = 5
AT_ONCE = 5_000  # rows per commit
FILTERS: dict[str, dict[str, object]] = {
    "nothing": {},
    "label": {"label": LABELS[0]},
    "letters of the path": {"text": "0421"},
    "mistakes, surest first": {"answer": "mistakes", "sort": "sure"},
    "versions disagree": {"apart": "versions", "sort": "unsure"},
    "confidence": {"least": 40, "most": 60, "sort": "unsure"},
    "unlike the training images": {"drift": 1},
    "the last page": {"sort": "newest", "page": 10**6},
}
Row = dict[str, Any]


def gallery(count: int, repeats: int) -> dict[str, Any]:
    """Request pages over HTTP from the gallery of a home with `count` images (written without Spark)."""
    home = HOMES / f"gallery-{count}"
    if not home.with_suffix(".finished").exists():
        build(home, count)
        home.with_suffix(".finished").touch()
    runs = []
    for repeat in range(repeats):
        run = measured([sys.executable, "-m", "benchmarks.gallery", "gallery", str(home / "landing"), str(home), ""])
        runs.append(asdict(run))
        print(f"gallery {repeat + 1}/{repeats}: {run.error or run.answer}", flush=True)
    return {"count": count, "runs": runs}


def build(home: Path, count: int) -> None:
    """Write the files and tables of a home: no two images have the same bytes, and two versions predicted each."""
    delta_tables, random = (
        DeltaTables(pyspark=DeltaSpark(spark_config={}), root=str(home / "tables")),
        Random(0),
    )
    contents = [to_jpeg(crop(to_noise(place), place)) for place in range(PICTURES)]
    for start in range(0, count, AT_ONCE):
        rows: dict[Table, list[Row]] = {
            table: [] for table in (IMAGE_FILES, FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_PREDICTIONS)
        }
        for number in range(start, min(start + AT_ONCE, count)):
            add(rows, home / "landing", numbered(contents[number % PICTURES], number), number, random)
        for table, some in rows.items():
            delta_tables.create(table)
            whole = ({**dict.fromkeys(table.columns.fieldNames()), **row} for row in some)
            files = list(write_files(whole, delta_tables.uri(table), file_layout(table)))
            delta_tables.append_files(table, files)


def add(rows: dict[Table, list[Row]], landing: Path, content: bytes, number: int, random: Random) -> None:
    """Write one file, and append its row to the rows of every table."""
    label = random.choice(LABELS)
    file = landing / label / f"{number // AT_ONCE:03}" / f"{number:07}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    key = {"path": to_path(os.fsencode(file)), "image_id": sha256(content).hexdigest()}
    now = datetime.fromtimestamp(1_600_000_000 + number, UTC)
    bytes_of = {"length": len(content), "modification_time": now}
    seen = {"attempts": 1, "first_seen": now, "last_seen": now}
    hashes = {name: f"{random.getrandbits(64):016x}" for name in ("perceptual_hash", "mirrored_hash")}
    size = dict(zip(("width", "height"), SMALL_SIZE, strict=True))
    features = {**size, "mode": "RGB", "format": "JPEG", "orientation": 1, "label": label, **hashes}
    rows[IMAGE_FILES].append({**key, **bytes_of, **seen, "state": "current"})
    rows[FEATURED_IMAGES].append({**key, **bytes_of, **features, "content": content})
    split = random.choices(("training", "validation", "test"), (70, 15, 15))[0]
    rows[IMAGE_SPLITS].append({**key, "label": label, "split": split, "duplicate_group": key["image_id"], **hashes})
    for version, framework in ((1, "tensorflow"), (2, "torch")):
        predicted = label if random.random() < 0.9 else random.choice(LABELS)
        shares = [random.random() for _ in LABELS]
        answer = {"label": predicted, "probability": max(shares) / sum(shares), "probabilities": shares}
        rows[IMAGE_PREDICTIONS].append(
            {**key, **answer, "model_name": MODEL_NAME, "model_version": version, "framework": framework}
        )


@contextmanager
def served(home: Path) -> Iterator[int]:
    """Run the gallery in a separate process, as `make dev` does, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {**os.environ, "IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": str(home / "landing")}
    server = subprocess.Popen([sys.executable, "-m", "gallery", "--port", str(port)], env=variables)
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def get(connection: HTTPConnection, address: str) -> bytes:
    """The body of the response. Raises OSError if the status is not 200."""
    connection.request("GET", address)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise OSError(f"{address} returned status {answer.status}")
    return body


def last_page(connection: HTTPConnection) -> int:
    """The number of the last page."""
    return int(get(connection, "/").decode().split("page 1 of ")[1].split("<")[0].replace(",", ""))


def milliseconds(act: Callable[[], object]) -> float:
    """The duration of a call."""
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


def page_with_pictures(connections: list[HTTPConnection], number: int) -> None:
    """Load a page and all its thumbnails, over as many connections as a browser uses."""
    address = f"/?{urlencode({'sort': 'unsure', 'page': number})}"
    pictures = [part.split('"')[0] for part in get(connections[0], address).decode().split('src="')[1:]]
    if len(pictures) != PAGE_IMAGES:
        raise OSError(f"{address} has {len(pictures)} thumbnails: expected {PAGE_IMAGES}")
    with ThreadPoolExecutor(CONNECTIONS) as browser:
        parts = [pictures[place::CONNECTIONS] for place in range(CONNECTIONS)]
        list(browser.map(lambda one, some: [get(one, picture) for picture in some], connections, parts))


def main() -> None:
    """Request every filter, pages without cached thumbnails, the same pages again, and one image."""
    home = Path(read_task().target)
    started = time.perf_counter()
    with served(home) as port, timed() as figures:
        figures["start"] = time.perf_counter() - started
        connections = [HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(CONNECTIONS)]
        first = connections[0]
        filters = {name: f"/?{urlencode(parameters)}".rstrip("?") for name, parameters in FILTERS.items()}
        figures["filters"] = {
            name: [milliseconds(partial(get, first, address)) for _ in range(REPEATS)]
            for name, address in filters.items()
        }
        pages = Random(time.time_ns()).sample(range(1, last_page(first)), REPEATS)
        for kind in ("new", "kept"):
            figures[kind] = [milliseconds(partial(page_with_pictures, connections, page)) for page in pages]
        one = get(first, "/?sort=unsure").decode().split('href="/image?')[1].split('"')[0].replace("&amp;", "&")
        figures["image"] = [milliseconds(partial(get, first, f"/image?{one}")) for _ in range(REPEATS)]


def gallery_section(found: dict[str, Any]) -> str:
    """The page's section on the gallery."""
    answers = [run["answer"] for run in good(found["runs"])]
    if not answers:
        return ""
    rows = [
        [f"filter: {name}", f"{Spread.of([one for run in answers for one in run['filters'][name]]):,.0f}", "1,000"]
        for name in FILTERS
    ]
    for words, name, aim in (
        ("a page of 60 images, thumbnails created", "new", "500"),
        ("the same page again, thumbnails cached", "kept", "500"),
        ("one image", "image", ""),
    ):
        rows.append([words, f"{Spread.of([one for run in answers for one in run[name]]):,.0f}", aim])
    return f"## The gallery over {found['count']:,} images\n\n{markdown(['', 'ms', 'target (at most)'], rows)}"


if __name__ == "__main__":
    main()
