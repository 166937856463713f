"""Frozen backbones as ONNX files, which compute embeddings without a framework (runs in executors).

A child process exports each backbone once. The file stays in the caches folder, with a record of its weights beside it.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from image_assets.images.formats import UnreadableImage
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits, is_reduced, with_scaled_contents
from image_assets.images.pixels import DEFAULT, Reading, to_pixels
from image_assets.models.backbones import BACKBONES, Backbone
from image_assets.models.embeddings import to_stored
from image_assets.models.engines import Network, onnx_network, thread_count
from image_assets.models.epochs import State, state_digest
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import EMBEDDING, OPSET, require_same_answers
from resources.delta.arrow_rows import Row
from resources.delta.row_groups import Color
from resources.files.replacing import replace_file, replace_text
from resources.processes.child_process import collect_rarely, end_with_parent

if TYPE_CHECKING:
    from onnx import ModelProto

EMBEDDING_CODE = "4"  # raise it if the same weights and images would give other embeddings
FOLDER = ".backbones"  # in the caches folder
UNTRAINED = "untrained"  # the origin of random weights, which depend on the seed of a training
RETRY_SECONDS = 3600.0  # until a download of weights is tried again
BATCH_IMAGES = 64


class BackboneNotExported(RuntimeError):
    """A backbone could not be exported; the frameworks may raise anything."""


@dataclass(frozen=True)
class Export:
    """A backbone to export: of a framework, with weights from a source of `BackboneWeights`.

    `weights_identity` is equal for equal weights.
    """

    framework: str
    backbone_name: str
    weights: str
    weights_identity: str

    @property
    def architecture(self) -> Backbone:
        """The backbone's row."""
        return BACKBONES[self.backbone_name]

    @property
    def name(self) -> str:
        """The name of its files, without a suffix; equal for equal files."""
        packages = [f"{name} {installed_version(name)}" for name in FRAMEWORKS[self.framework].packages]
        parts = "/".join([EMBEDDING_CODE, self.weights_identity, str(OPSET), *packages])
        return f"{self.backbone_name}-{self.framework}-{sha256(parts.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class ExportRecord:
    """What an exported file holds: the digest of the weights, and where they are from. UNTRAINED ones have no file."""

    weights_digest: str
    origin: str


@dataclass(frozen=True)
class ExportedBackbone:
    """A backbone from pixels (n, side, side, 3) uint8 to embeddings (n, features) float32, as a framework exports it.

    `network` is the framework's own, to compare with the ONNX.
    """

    onnx: "ModelProto"
    network: Callable[[np.ndarray], np.ndarray]
    weights: State
    origin: str  # of the weights: folder, imagenet, package or untrained


@dataclass(frozen=True)
class EmbeddingNetwork:
    """A frozen backbone that embeds images; any process can use it that reads the caches folder.

    Attributes:
        backbone: What identifies its embeddings, the value of `backbone` in `image_embeddings`.
        file: The path of the ONNX file.
        side_pixels: Width and height of the images that it takes.
        color: Whether it gets color or gray images.
        reading: How images are read.
    """

    backbone: str
    file: str
    side_pixels: int
    color: Color
    reading: Reading

    def rows(self, images: Iterable[Row]) -> Iterator[Row]:
        """Rows of `image_embeddings` for rows with path, image_id, length and content."""
        network, limits = loaded_network(self.file), Limits()
        scaled = with_scaled_contents(images, self.reading)
        with (
            GuardedProcess(self._pixels, memory_bytes=limits.memory_bytes) as guarded,
            ThreadPoolExecutor(thread_count(), "decoder") as decoders,
        ):
            while batch := [*islice(scaled, BATCH_IMAGES)]:
                decoding = [
                    None if is_large(row["content"], self.reading) else decoders.submit(self._pixels, row["content"])
                    for row in batch
                ]
                pixels = [
                    done.result() if done else or_none(guarded.run(row["content"], cpu_seconds=limits.seconds))
                    for row, done in zip(batch, decoding, strict=True)
                ]
                readable = [of for of in pixels if of is not None]
                embeddings = iter(network(np.stack(readable))[EMBEDDING] if readable else ())
                for row, of in zip(batch, pixels, strict=True):
                    yield {
                        "path": row["path"],
                        "image_id": row["image_id"],
                        "backbone": self.backbone,
                        "embedding": None if of is None else to_stored(next(embeddings)),
                    }

    def _pixels(self, content: bytes | None) -> np.ndarray | None:
        """The pixels (side, side, 3) uint8; None without content, or if it cannot be decoded."""
        if content is None:
            return None
        try:
            return to_pixels(content, self.side_pixels, self.color, reading=self.reading)
        except (UnreadableImage, OSError, MemoryError):
            return None


def is_large(content: bytes | None, reading: Reading) -> bool:
    """Whether an image must be decoded in a guarded process."""
    return content is not None and is_reduced(content, reading)


def or_none(pixels: np.ndarray | ItemFailure | None) -> np.ndarray | None:
    """The pixels; None if the guarded process failed."""
    return None if isinstance(pixels, ItemFailure) else pixels


@cache
def loaded_network(file: str) -> Network:
    """The network of an ONNX file, loaded once per process."""
    return onnx_network(file)


def digest_of(weights: State, backbone: Backbone, framework: str, origin: str) -> str:
    """A text that is equal for equal weights of a backbone, also in different frameworks if a package has them."""
    own = backbone.implementations[framework]
    return own.packaged_weights if own.packaged_weights and origin != UNTRAINED else state_digest(weights)


def backbone_identity(
    framework: str, architecture: Backbone, weights_digest: str, color: Color, reading: Reading = DEFAULT
) -> str:
    """What identifies embeddings: `<backbone>-<exporting framework>-<hash of everything that they depend on>`."""
    parts = [EMBEDDING_CODE, weights_digest, color, *([] if reading == DEFAULT else map(str, asdict(reading).values()))]
    return f"{architecture.name}-{architecture.exporter(framework)}-{sha256('/'.join(parts).encode()).hexdigest()[:16]}"


def embedding_networks(
    caches: str, exports: Sequence[Export], color: Color, reading: Reading, log: Callable[[str], object]
) -> tuple[list[EmbeddingNetwork], dict[str, str]]:
    """The networks of exported backbones; those that are not in the caches folder are exported first.

    Untrained backbones are left out: their weights, and so their embeddings, differ from training to training.
    `log` gets a line before each export.

    Returns:
        The networks, and for each framework whose backbone could not be exported why.
    """
    lacking = [export for export in exports if export.weights != "none" and not is_recorded(caches, export)]
    faults: dict[str, str] = {}
    for export in lacking:
        log(f"exporting {export.backbone_name} from {export.framework} to ONNX, once: it may take a minute")
    with ThreadPoolExecutor(max(1, len(lacking))) as threads:  # each waits for its process
        exporting = {export: threads.submit(write_export, caches, export) for export in lacking}
        for export, done in exporting.items():
            try:
                done.result()
            except BackboneNotExported as error:
                faults[export.framework] = str(error)
    found = (recorded_network(caches, export, color, reading) for export in exports)
    return [network for network in found if network], faults


def recorded_network(caches: str, export: Export, color: Color, reading: Reading) -> EmbeddingNetwork | None:
    """The network of a backbone that was exported before; None if it was not, or if it is untrained."""
    record = read_record(caches, export)
    if record is None or record.origin == UNTRAINED:
        return None
    identity = backbone_identity(export.framework, export.architecture, record.weights_digest, color, reading)
    return EmbeddingNetwork(
        identity, str(file_of(caches, export, "onnx")), export.architecture.side_pixels, color, reading
    )


def is_recorded(caches: str, export: Export) -> bool:
    """Whether there is nothing to export; weights that could not be downloaded are tried again after some time."""
    record = read_record(caches, export)
    if record is None or record.origin != UNTRAINED:
        return record is not None
    return time.time() - file_of(caches, export, "json").stat().st_mtime < RETRY_SECONDS


def read_record(caches: str, export: Export) -> ExportRecord | None:
    """The record of an export; None if there is none, or if its file is gone."""
    if export.weights == "none":
        return None
    try:
        record = ExportRecord(**json.loads(file_of(caches, export, "json").read_text()))
    except (FileNotFoundError, ValueError):  # ValueError: a power failure left it empty or cut it off
        return None
    return record if record.origin == UNTRAINED or file_of(caches, export, "onnx").is_file() else None


def file_of(caches: str, export: Export, suffix: str) -> Path:
    """A file of the export."""
    return Path(caches) / FOLDER / f"{export.name}.{suffix}"


def write_export(caches: str, export: Export) -> None:
    """Export a backbone and record it; a BackboneNotExported error says why that failed."""
    folder = Path(caches) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{uuid4().hex}"
    # In another process: two frameworks in one crash it. If this process is killed, the export ends too.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn, initializer=end_with_parent, initargs=(os.getpid(),)) as executor:
            record = executor.submit(_export_in_process, export, unfinished).result()
        if record.origin != UNTRAINED:
            replace_file(unfinished, file_of(caches, export, "onnx"))
        replace_text(file_of(caches, export, "json"), json.dumps(asdict(record)))
    except Exception as error:
        raise BackboneNotExported(f"{type(error).__name__}: {error}"[:500]) from error
    finally:
        unfinished.unlink(missing_ok=True)


def installed_version(package: str) -> str:
    """The version of an installed package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _export_in_process(export: Export, file: Path) -> ExportRecord:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    collect_rarely()
    import onnx

    made: ExportedBackbone = FRAMEWORKS[export.framework].training.export_backbone(export.architecture, export.weights)
    if made.origin != UNTRAINED:
        onnx.save(made.onnx, file)
        network = onnx_network(str(file))
        require_same_answers(made.network, lambda pixels: network(pixels)[EMBEDDING], export.architecture.side_pixels)
    digest = digest_of(made.weights, export.architecture, export.framework, made.origin)
    return ExportRecord(digest, made.origin)
