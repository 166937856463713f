"""Images that a table names, fetched into the landing folder: which file each becomes, and what came of it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PurePosixPath
from threading import Lock
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa

from image_assets.data.label_corrections import why_no_label
from image_assets.pixels import FORMATS, SIGNATURE_BYTES, format_of
from resources import landed_files
from resources.file_system import SUFFIXES
from resources.image_file import escaped
from resources.image_folder import ImageFolder
from resources.remote_files import WEB, Fetched, NotFetched, RemoteFiles

FETCHED, FAILED, UNNAMED = "fetched", "failed", "unnamed"
SECRET = re.compile(r"token|sig|secret|passw|pwd|key|credential|auth|session|^x-(amz|goog)-", re.IGNORECASE)
NO_NAME = re.compile(r"[^\w .()-]+")  # what names that addresses end in are rid of
MOST_LETTERS = 100


@dataclass(frozen=True)
class Source:
    """An image that a table names; `url` is its address as it may be shown."""

    address: str = field(repr=False)
    url: str
    label: str = ""
    name: str = ""

    def below(self, suffix: str) -> str:
        """Its place below the landing folder; its content tells the suffix where its name has none of an image."""
        said = self.name or unquote(urlsplit(self.url).path).rpartition("/")[2]
        path = PurePosixPath(said)
        if path.suffix.lower() in SUFFIXES:
            said, suffix = path.stem, path.suffix
        if not self.name:  # the same name comes from many places
            stem = NO_NAME.sub("_", said).strip(" .")[:MOST_LETTERS] or "image"
            said = f"{stem}-{sha256(self.url.encode()).hexdigest()[:10]}"
        return f"{self.label}/{said}{suffix}" if self.label else f"{said}{suffix}"


@dataclass(frozen=True)
class Outcome:
    """What came of an image; the fields are the columns of fetched_images."""

    url: str
    state: str = FAILED
    reason: str | None = None
    message: str | None = None
    path: str | None = None
    image_id: str | None = None
    length: int | None = None
    stamp: str | None = None
    fetched_at: datetime | None = None

    @property
    def fetched(self) -> "Outcome":
        """The same, where the file is there as it was."""
        return replace(self, state=FETCHED, reason=None, message=None)

    def failed(self, error: NotFetched) -> "Outcome":
        """The same, where it could not be fetched; the file stays where it was fetched before."""
        return replace(self, state=FAILED, reason=error.reason, message=error.message)


def shown(address: str) -> str:
    """A web address without account, fragment, and the values of whatever in it looks like a secret; others as is."""
    parts = urlsplit(address)
    if parts.scheme not in WEB:
        return address if "@" not in parts.netloc else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    query = "&".join(f"{name}{sign}{'…' if SECRET.search(name) else value}" for name, sign, value in pairs)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def why_not(source: Source) -> NotFetched | None:
    """What is wrong with a row of the table; None when nothing is."""
    if not source.address:
        return NotFetched("bad_address", "a row names no address")
    if "@" in urlsplit(source.address).netloc:
        return NotFetched("password", "its address holds an account or a password: leave it out")
    if source.label and (why := why_no_label(source.label)):
        return NotFetched("bad_label", f"{source.label[:80]!r} is no label: {why}")
    if source.label.startswith(".") or source.name.startswith("."):
        return NotFetched("bad_name", "it would be a hidden file: expected a name that begins with no dot")
    if source.name and (why := why_no_label(f"{source.name}.jpeg")):
        return NotFetched("bad_name", f"{source.name[:80]!r} is no name: {why}")
    return None


def to_sources(rows: pa.Table) -> tuple[list[Source], dict[str, NotFetched]]:
    """The images that a table names, each once, and by url what cannot be fetched as it is named."""
    named: dict[str, set[Source]] = defaultdict(set)
    refused: dict[str, NotFetched] = {}
    for row in rows.to_pylist():
        address, label, name = ((row.get(column) or "").strip() for column in (rows.column_names[0], "label", "name"))
        if not (address or label or name):
            continue
        try:
            source = Source(address, shown(address), label, name)
        except ValueError:  # its parts cannot be told apart, and so neither what may not be shown
            number = sha256(address.encode()).hexdigest()[:10]
            refused[f"address {number}"] = NotFetched("bad_address", "it is no address")
            continue
        if error := why_not(source):
            refused[source.url] = error
        else:
            named[source.url].add(source)
    for url, ways in named.items():
        if len({(source.label, source.name) for source in ways}) > 1:
            refused[url] = NotFetched("contradictory", "its rows say several labels or names: expected one")
    wanted = [min(ways, key=lambda source: source.address) for url, ways in named.items() if url not in refused]
    return wanted, refused


class Fetching:
    """Fetches sources into the landing folder, several at a time; `known` is what came of them before, by url."""

    def __init__(self, files: RemoteFiles, image_folder: ImageFolder, known: Mapping[str, Outcome]) -> None:
        self.files, self.known = files, known
        self.root, self.landing = image_folder.root, image_folder.path
        self.places = {self.below(outcome): url for url, outcome in known.items() if outcome.path}
        self.lock = Lock()

    def below(self, outcome: Outcome) -> str:
        """Where the file lies below the landing folder; empty where it is none of this folder."""
        path = (outcome.path or "").removeprefix(f"{self.landing}/")
        return "" if path == outcome.path else unquote(path)

    def all(self, sources: Sequence[Source], at_once: int) -> Iterator[Outcome]:
        """What came of each, as they come."""
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="fetch")
        try:
            for done in as_completed([pool.submit(self.one, source) for source in sources]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, source: Source) -> Outcome:
        """What came of an image: the same as before where nothing changed."""
        known = self.known.get(source.url, Outcome(source.url))
        before = self.below(known)
        stays = bool(before) and source.below(PurePosixPath(before).suffix) == before
        stays = stays and landed_files.is_there(self.root, before)
        try:
            fetched = self.files.fetch(source.address, (known.stamp or "") if stays else "")
            if fetched is None:
                return known.fetched
            with fetched.file:
                return self.landed(source, fetched, known, stays=stays)
        except NotFetched as error:
            return known.failed(error)

    def landed(self, source: Source, fetched: Fetched, known: Outcome, *, stays: bool) -> Outcome:
        """Lay a file at its place; one that was fetched before to another place leaves it."""
        start = fetched.file.read(SIGNATURE_BYTES)
        fetched.file.seek(0)
        kind = format_of(start)
        if kind is None:
            expected = f"expected one of {', '.join(FORMATS)}"
            raise NotFetched("not_an_image", f"{fetched.length:,} bytes beginning with {start[:8]!r}: {expected}")
        if stays and known.image_id == fetched.digest:  # the same bytes: the file keeps its time
            return replace(known.fetched, stamp=fetched.stamp)
        before, below = self.below(known), source.below(f".{kind.lower()}")
        self.claim(source.url, below)
        try:
            landed_files.put(self.root, below, fetched.file)
            if before and before != below:
                landed_files.remove(self.root, before)
        except OSError as error:
            raise NotFetched(
                "not_written", f"the landing folder does not take it: {error.strerror or error}"
            ) from error
        return replace(
            known.fetched,
            path=f"{self.landing}/{escaped(below)}",
            image_id=fetched.digest,
            length=fetched.length,
            stamp=fetched.stamp,
            fetched_at=datetime.now(UTC),
        )

    def claim(self, url: str, below: str) -> None:
        """Let a place be this image's; NotFetched where a file is there that is not."""
        with self.lock:
            if self.places.get(below) != url and (below in self.places or landed_files.is_there(self.root, below)):
                raise NotFetched("name_taken", f"{below} is another file: expected a name of its own, or none")
            self.places[below] = url
