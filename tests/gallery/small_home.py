"""A small home whose tables are written without Spark: photographs of two labels, predicted by two versions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import uvicorn

from gallery.explanations import Explanations
from gallery.neighbors import LiveEmbeddings
from gallery.server import Gallery, build_app
from gallery.thumbnails import FolderCache, Thumbnails
from image_assets.data.folder_layout import FolderLayout
from image_assets.images.features import to_features
from image_assets.predictions.image_index import LiveIndex
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout
from resources.files.file_system import to_path
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from tests.support.images import png, put
from tests.support.tables import tables_at

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
LABELS = ("roses", "tulips")
HOSTILE = '"><img src=x onerror=alert(1)>'  # a label: folders can have any name
Row = dict[str, Any]


def append(delta_tables: DeltaTables, table: Table, rows: Sequence[Row]) -> None:
    """Appends rows to a table; missing columns become null."""
    delta_tables.create(table)
    whole = [{**dict.fromkeys(table.columns.fieldNames()), **row} for row in rows]
    folder = delta_tables.uri(table)
    delta_tables.append_files(table, list(write_files(whole, folder, file_layout(table))))


def landed(landing: Path, name: str, content: bytes, number: int) -> Row:
    """Writes a file to the landing folder; returns its row in the ledger."""
    file = put(landing, name, content)
    return {
        "path": to_path(str(file).encode()),
        "state": "current",
        "image_id": sha256(content).hexdigest(),
        "length": len(content),
        "modification_time": NOON + timedelta(minutes=number),
        "attempts": 1,
        "first_seen": NOON,
        "last_seen": NOON,
    }


def layout_of(landing: Path) -> FolderLayout:
    """The default layout of a landing folder."""
    return FolderLayout(to_path(str(landing).encode()))


def featured(file: Row, content: bytes, landing: Path) -> Row:
    """The file's row in featured_images."""
    features = asdict(to_features(content))
    label = layout_of(landing).label(file["path"])
    key = {name: file[name] for name in ("path", "image_id", "length", "modification_time")}
    number = LABELS.index(label) if label in LABELS else None
    return {**key, **features, "label": label, "label_index": number, "content": content}


def predicted(image: Row, version: int, label: str | None, probability: float | None, version_id: str = "") -> Row:
    """A version's prediction for an image, with no label if it failed."""
    framework = ("tensorflow", "torch")[version % 2]
    shares = [probability, 1 - probability] if probability is not None else None
    return {
        **{name: image[name] for name in ("path", "image_id")},
        **{"label": label, "probability": probability, "probabilities": shares},
        **{"model_name": "image_classifier", "model_version": version, "version_id": version_id},
        **{"framework": framework, "fault": None if label else "raised: out of patience", "predicted_at": NOON},
    }


def write_photographs(delta_tables: DeltaTables, landing: Path, count: int = 24) -> list[Row]:
    """Writes photographs of two labels in turn, every sixth in the test split; returns their rows in featured_images.

    Version 1 is wrong about the second photograph only. Version 2 disagrees with it on the fifth.
    """
    files, images = [], []
    for number in range(count):
        content = png(number)
        files.append(landed(landing, f"{LABELS[number % 2]}/photograph {number:03}.png", content, number))
        images.append(featured(files[-1], content, landing))
    append(delta_tables, IMAGE_FILES, files)
    append(delta_tables, FEATURED_IMAGES, images)
    splits = [
        {**image, "duplicate_group": image["image_id"], "split": "test" if number % 6 == 5 else "training"}
        for number, image in enumerate(images)
    ]
    fields = IMAGE_SPLITS.columns.fieldNames()
    append(delta_tables, IMAGE_SPLITS, [{name: row[name] for name in fields if name in row} for row in splits])
    right = [image["label"] for image in images]
    first = [*right[:1], LABELS[0], *right[2:]]
    second = [*first[:4], LABELS[1], *first[5:]]
    append(
        delta_tables,
        IMAGE_PREDICTIONS,
        [
            predicted(image, version, label, 0.5 + number / (100 if count < 50 else 300))
            for version, labels in ((1, first), (2, second))
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ],
    )
    return images


@contextmanager
def served(home: Path, landing: Path, *, merge_labels: bool = False) -> Iterator[str]:
    """Serves the gallery of a home on a free port; yields its URL."""
    delta_tables = tables_at(home / "tables")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    index, pictures = LiveIndex(delta_tables, registry, merge_labels=merge_labels), FolderCache(home / "gallery")
    gallery = Gallery(
        delta_tables=delta_tables,
        image_folder=ImageFolder(root=str(landing), merge_labels=merge_labels),
        index=index,
        thumbnails=Thumbnails(delta_tables, pictures),
        embeddings=LiveEmbeddings(delta_tables),
        explanations=Explanations(delta_tables, registry, pictures),
        links={"Dagster": "http://127.0.0.1:3000"},
    )
    server = uvicorn.Server(uvicorn.Config(build_app(gallery), host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
