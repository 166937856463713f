"""Images that a table of addresses names, fetched into the landing folder."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from logging import Logger
from pathlib import PurePosixPath
from threading import Lock
from urllib.parse import unquote, urlsplit, urlunsplit

import dagster as dg
import pyarrow as pa
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.label_corrections import label_problem
from image_assets.images.pixels import FORMATS, SIGNATURE_BYTES, format_of
from image_assets.schemas import FETCHED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import OutsideRows, OutsideTable
from resources.delta.table_metadata import table_metadata
from resources.files import image_folder as landed_files
from resources.files.file_system import SUFFIXES, escaped, is_url
from resources.files.image_folder import MEBIBYTE, ImageFolder
from resources.files.remote_files import WEB, Fetched, NotFetched, RemoteFiles

FETCHED, FAILED, UNNAMED = "fetched", "failed", "unnamed"
SECRET = re.compile(r"token|sig|secret|passw|pwd|key|credential|auth|session|^x-(amz|goog)-", re.IGNORECASE)
NO_NAME = re.compile(r"[^\w .()-]+")  # what names that addresses end in are rid of
MAX_STEM_LENGTH = 100


@dataclass(frozen=True)
class Source:
    """An image that a table names; `url` is its address as it may be shown."""

    address: str = field(repr=False)
    url: str
    label: str = ""
    name: str = ""

    def relative_path(self, suffix: str) -> str:
        """Its place below the landing folder; its content tells the suffix where its name has none of an image."""
        file_name = self.name or unquote(urlsplit(self.url).path).rpartition("/")[2]
        path = PurePosixPath(file_name)
        if path.suffix.lower() in SUFFIXES:
            file_name, suffix = path.stem, path.suffix
        if not self.name:  # the same name comes from many places
            stem = NO_NAME.sub("_", file_name).strip(" .")[:MAX_STEM_LENGTH] or "image"
            file_name = f"{stem}-{sha256(self.url.encode()).hexdigest()[:10]}"
        return f"{self.label}/{file_name}{suffix}" if self.label else f"{file_name}{suffix}"


@dataclass(frozen=True)
class FetchOutcome:
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
    def fetched(self) -> "FetchOutcome":
        """The same, where the file is there as it was."""
        return replace(self, state=FETCHED, reason=None, message=None)

    def failed(self, error: NotFetched) -> "FetchOutcome":
        """The same, where it could not be fetched; the file stays where it was fetched before."""
        return replace(self, state=FAILED, reason=error.reason, message=error.message)


def redacted(address: str) -> str:
    """A web address without account, fragment, and the values of whatever in it looks like a secret; others as is."""
    parts = urlsplit(address)
    if parts.scheme not in WEB:
        return address if "@" not in parts.netloc else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    query = "&".join(f"{name}{sign}{'…' if SECRET.search(name) else value}" for name, sign, value in pairs)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def refusal_of(source: Source) -> NotFetched | None:
    """What is wrong with a row of the table; None when nothing is."""
    if not source.address:
        return NotFetched("bad_address", "a row names no address")
    if "@" in urlsplit(source.address).netloc:
        return NotFetched("password", "its address holds an account or a password: leave it out")
    if source.label and (why := label_problem(source.label)):
        return NotFetched("bad_label", f"{source.label[:80]!r} is no label: {why}")
    if source.label.startswith(".") or source.name.startswith("."):
        return NotFetched("bad_name", "it would be a hidden file: expected a name that begins with no dot")
    if source.name and (why := label_problem(f"{source.name}.jpeg")):
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
            source = Source(address, redacted(address), label, name)
        except ValueError:  # its parts cannot be told apart, and so neither what may not be shown
            number = sha256(address.encode()).hexdigest()[:10]
            refused[f"address {number}"] = NotFetched("bad_address", "it is no address")
            continue
        if error := refusal_of(source):
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

    def __init__(self, files: RemoteFiles, image_folder: ImageFolder, previous: Mapping[str, FetchOutcome]) -> None:
        self.files, self.previous = files, previous
        self.root, self.landing = image_folder.root, image_folder.path
        self.url_by_path = {self.relative_path(outcome): url for url, outcome in previous.items() if outcome.path}
        self.lock = Lock()

    def relative_path(self, outcome: FetchOutcome) -> str:
        """Where the file lies below the landing folder; empty where it is none of this folder."""
        path = (outcome.path or "").removeprefix(f"{self.landing}/")
        return "" if path == outcome.path else unquote(path)

    def all(self, sources: Sequence[Source], at_once: int) -> Iterator[FetchOutcome]:
        """What came of each, as they come."""
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="fetch")
        try:
            for done in as_completed([pool.submit(self.one, source) for source in sources]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, source: Source) -> FetchOutcome:
        """What came of an image: the same as before where nothing changed."""
        previous = self.previous.get(source.url, FetchOutcome(source.url))
        before = self.relative_path(previous)
        stays = bool(before) and source.relative_path(PurePosixPath(before).suffix) == before
        stays = stays and landed_files.exists(self.root, before)
        try:
            fetched = self.files.fetch(source.address, (previous.stamp or "") if stays else "")
            if fetched is None:
                return previous.fetched
            with fetched.file:
                return self.landed(source, fetched, previous, stays=stays)
        except NotFetched as error:
            return previous.failed(error)

    def landed(self, source: Source, fetched: Fetched, previous: FetchOutcome, *, stays: bool) -> FetchOutcome:
        """Lay a file at its place; one that was fetched before to another place leaves it."""
        start = fetched.file.read(SIGNATURE_BYTES)
        fetched.file.seek(0)
        kind = format_of(start)
        if kind is None:
            expected = f"expected one of {', '.join(FORMATS)}"
            raise NotFetched("not_an_image", f"{fetched.length:,} bytes beginning with {start[:8]!r}: {expected}")
        if stays and previous.image_id == fetched.digest:  # the same bytes: the file keeps its time
            return replace(previous.fetched, stamp=fetched.stamp)
        before, relative_path = self.relative_path(previous), source.relative_path(f".{kind.lower()}")
        self.claim(source.url, relative_path)
        try:
            landed_files.put(self.root, relative_path, fetched.file)
            if before and before != relative_path:
                landed_files.remove(self.root, before)
        except OSError as error:
            raise NotFetched(
                "not_written", f"the landing folder does not take it: {error.strerror or error}"
            ) from error
        return replace(
            previous.fetched,
            path=f"{self.landing}/{escaped(relative_path)}",
            image_id=fetched.digest,
            length=fetched.length,
            stamp=fetched.stamp,
            fetched_at=datetime.now(UTC),
        )

    def claim(self, url: str, relative_path: str) -> None:
        """Let a place be this image's; NotFetched where a file is there that is not."""
        with self.lock:
            if self.url_by_path.get(relative_path) != url and (
                relative_path in self.url_by_path or landed_files.exists(self.root, relative_path)
            ):
                raise NotFetched("name_taken", f"{relative_path} is another file: expected a name of its own, or none")
            self.url_by_path[relative_path] = url


ADDRESSES = ("url", "path")  # the first of these columns that is there
OPTIONAL_COLUMNS = ("label", "name")
COMMIT_ROWS, COMMIT_SECONDS = 500, 30  # a killed run fetches at most this much again
COLUMNS = [of.name for of in fields(FetchOutcome)]


class FetchConfig(dg.Config):
    """What is fetched, and how far that may go."""

    table: str = Field(
        description="A CSV or Parquet file or a Delta table with a column `url` (or `path`), and `label` and `name` "
        "where they are known."
    )
    at_once: int = Field(default=8, ge=1, le=64, description="How many images are fetched at the same time.")
    megabytes: float = Field(default=100, gt=0, description="Larger files are not fetched.")
    seconds: float = Field(default=60, gt=0, description="How long one image may take.")
    attempts: int = Field(default=3, ge=1, le=10, description="How often a run tries where a server gives no answer.")
    private_addresses: bool = Field(
        default=False, description="Whether web servers may have addresses that the internet does not have."
    )
    local_files: bool = Field(default=False, description="Whether files of this machine may be named.")


def read_table(source: str) -> OutsideRows:
    """The rows of the table, the column of addresses first; a ValueError when it has none."""
    if is_url(source) and not source.startswith("s3://"):
        raise ValueError("table is on another file system: expected a path, or s3://…")
    table = OutsideTable(source=source)
    outside = table.read([], [*ADDRESSES, *OPTIONAL_COLUMNS])
    found = [name for name in ADDRESSES if name in outside.rows.column_names]
    if not found:
        raise ValueError(f"{source} names no image: expected a column {' or '.join(ADDRESSES)}")
    more = [name for name in OPTIONAL_COLUMNS if name in outside.rows.column_names]
    return OutsideRows(outside.rows.select([found[0], *more]), outside.version, outside.content)


def read_outcomes(delta_tables: DeltaTables) -> dict[str, FetchOutcome]:
    """What came of each address so far."""
    return {row["url"]: FetchOutcome(**row) for row in delta_tables.read(FETCHED_IMAGES, COLUMNS).to_pylist()}


def merge_outcomes(delta_tables: DeltaTables, outcomes: Sequence[FetchOutcome]) -> None:
    """Merge what came of some images, in one commit; no commit for none."""
    if outcomes:
        rows = pa.Table.from_pylist([vars(outcome) for outcome in outcomes], to_arrow_schema(FETCHED_IMAGES.columns))
        delta_tables.merge(rows, FETCHED_IMAGES, updates={name: f"new.{name}" for name in COLUMNS[1:]})


def count_key(outcome: FetchOutcome, before: FetchOutcome | None) -> str:
    """What came of an image, in a word to count by."""
    if outcome.state == FAILED:
        return f"failed_{outcome.reason}"
    return "unchanged" if before and before.fetched_at == outcome.fetched_at else "fetched"


def fetch(
    delta_tables: DeltaTables, image_folder: ImageFolder, files: RemoteFiles, rows: pa.Table, at_once: int, log: Logger
) -> Counter[str]:
    """Fetch what is new or changed; how many images were fetched, are unchanged, or failed, by reason."""
    delta_tables.create(FETCHED_IMAGES)
    landed_files.prepare(image_folder.root)
    previous = read_outcomes(delta_tables)
    sources, refused = to_sources(rows)
    log.info(f"{len(sources):,} images are named; of {len(refused):,} the rows name nothing that can be fetched")
    counts = Counter(f"failed_{error.reason}" for error in refused.values())
    waiting = [previous.get(url, FetchOutcome(url)).failed(error) for url, error in refused.items()]
    waiting += no_longer_named(previous, {*refused, *(source.url for source in sources)})
    started = committed = time.monotonic()
    for number, outcome in enumerate(Fetching(files, image_folder, previous).all(sources, at_once), 1):
        counts[count_key(outcome, previous.get(outcome.url))] += 1
        waiting.append(outcome)
        if len(waiting) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
            merge_outcomes(delta_tables, changed_outcomes(waiting, previous))
            waiting, committed = [], time.monotonic()
            progress = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
            log.info(
                f"{number:,} of {len(sources):,} images, {number / (committed - started):,.0f} a second: {progress}"
            )
    merge_outcomes(delta_tables, changed_outcomes(waiting, previous))
    return counts


def no_longer_named(previous: Mapping[str, FetchOutcome], named: Collection[str]) -> list[FetchOutcome]:
    """What failed and has left the table: nothing to be warned of any more."""
    left = [outcome for url, outcome in previous.items() if outcome.state == FAILED and url not in named]
    return [replace(outcome, state=UNNAMED, reason=None, message=None) for outcome in left]


def changed_outcomes(outcomes: Sequence[FetchOutcome], previous: Mapping[str, FetchOutcome]) -> list[FetchOutcome]:
    """Those that are not what is known already."""
    return [outcome for outcome in outcomes if previous.get(outcome.url) != outcome]


@dg.asset(kinds={"deltalake"}, pool="fetched_images")
def fetched_images(
    context: dg.AssetExecutionContext, config: FetchConfig, delta_tables: DeltaTables, image_folder: ImageFolder
) -> dg.MaterializeResult:
    """Images that a table of addresses names, in the landing folder: each with what came of it, and why it failed."""
    outside = read_table(config.table)
    files = RemoteFiles(
        max_bytes=int(config.megabytes * MEBIBYTE),
        seconds=config.seconds,
        attempts=config.attempts,
        private_addresses=config.private_addresses,
        local_files=config.local_files,
    )
    counts = fetch(delta_tables, image_folder, files, outside.rows, config.at_once, context.log)
    delta_tables.compact_without_spark(FETCHED_IMAGES)
    return dg.MaterializeResult(
        metadata={
            **table_metadata(FETCHED_IMAGES, delta_tables.uri(FETCHED_IMAGES), delta_tables.snapshot(FETCHED_IMAGES)),
            "table": config.table,
            "table_content": outside.content,
            **{name: counts[name] for name in ("fetched", "unchanged")},
            **{name: count for name, count in sorted(counts.items()) if name.startswith("failed_")},
        }
    )
