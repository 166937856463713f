"""Explanations of predictions: pictures made on demand, one after the other, and cached in a folder."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from gallery.thumbnails import Content, FolderCache, read_from_file, read_from_table
from image_assets.images.contact_sheets import THUMBNAIL_PIXELS, contact_sheet
from image_assets.models.explanations import NotExplained, explained_tiles, explaining
from image_assets.models.isolated_scoring import stop_kept_processes
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import DamagedVersion, ModelRegistry, ModelVersion

READ_SIDE_PIXELS = 1024  # of large files, which are scaled while they are decoded
MAX_WAITING = 16
IDLE_SECONDS = 300.0  # then the process that has loaded a version ends


@dataclass(frozen=True)
class Question:
    """What speaks for each of the labels in an image, by a version."""

    content: Content
    version: ModelVersion
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the picture in the cache."""
        answered_by = repr((self.version.name, self.version.version_id, self.labels))
        return f"{self.content.image_id}-{sha256(answered_by.encode()).hexdigest()[:16]}.jpg"


class Explanations:
    """Pictures of what a version's predictions depend on. A guarded process loads the version and computes them."""

    def __init__(self, delta_tables: DeltaTables, registry: ModelRegistry, stored: FolderCache) -> None:
        self._delta_tables = delta_tables
        self._registry = registry
        self._stored = stored
        self._verified: set[tuple[int, str]] = set()
        self._pool = ThreadPoolExecutor(1, "explanation")  # a version computes on all cores
        self._waiting: dict[str, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None

    def picture(self, question: Question) -> Future[bytes]:
        """A JPEG with the image for each label, red where its probability depends on the image; raises NotExplained."""
        with self._lock:
            if question.name in self._waiting:
                return self._waiting[question.name]
            future: Future[bytes] = Future()
            if stored := self._stored.get(question.name):
                future.set_result(stored)
                return future
            if len(self._waiting) >= MAX_WAITING:
                future.set_exception(NotExplained("too many explanations are being computed: reload the page later"))
                return future
            future = self._waiting[question.name] = self._pool.submit(self._make, question)
        future.add_done_callback(lambda _: self._done(question))
        return future

    def _make(self, question: Question) -> bytes:
        version, content = question.version, question.content
        image = read_from_file(content, READ_SIDE_PIXELS) or read_from_table(self._delta_tables, content)
        if image is None:
            raise NotExplained("the image is neither in its file nor in the tables any more")
        self._require_files_as_logged(version)
        with explaining(version, self._registry) as explain:
            tiles = explained_tiles(image, explain(image, question.labels))
        picture = contact_sheet(tiles, side_pixels=THUMBNAIL_PIXELS)
        with suppress(OSError):  # with a full disk, it is made again each time
            self._stored.put(question.name, picture)
        return picture

    def _require_files_as_logged(self, version: ModelVersion) -> None:
        """Checks a version before this process loads it for the first time."""
        key = (version.version, version.version_id)
        if key not in self._verified:
            try:
                self._registry.require_files_as_logged(version)
            except DamagedVersion as error:
                raise NotExplained(str(error)) from error
            self._verified.add(key)

    def _done(self, question: Question) -> None:
        with self._lock:
            self._waiting.pop(question.name, None)
            if self._idle:
                self._idle.cancel()
            self._idle = threading.Timer(IDLE_SECONDS, self._pool.submit, [stop_kept_processes])
            self._idle.daemon = True
            self._idle.start()
