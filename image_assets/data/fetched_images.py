"""Images downloaded into the landing folder from a table of addresses."""

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
from urllib.parse import unquote, urlsplit

import dagster as dg
import pyarrow as pa
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.inspection import has_content
from image_assets.data.label_corrections import MAX_LABEL_BYTES, label_problem
from image_assets.images.formats import SIGNATURE_BYTES, format_of, not_an_image, suffix_of
from image_assets.schemas import FETCHED_IMAGES
from resources.delta.delta_log import table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalRows, ExternalTable
from resources.files import image_folder as landed_files
from resources.files.file_system import SUFFIXES, UNREACHABLE, escaped, require_file_or_s3
from resources.files.image_folder import MEBIBYTE, ImageFolder
from resources.files.listing import NameFilter
from resources.files.remote_files import Fetched, NotFetched, RemoteFiles, redacted, was_secret
from resources.setting_values import FETCH_PERMISSIONS
from resources.settings import read_settings

FETCHED, FAILED, UNNAMED = "fetched", "failed", "unnamed"
SAME_BUT_FOR_SECRETS = "same_but_for_secrets"  # addresses that differ only in secrets
NO_NAME = re.compile(r"[^\w .()-]+")  # characters to replace in file names taken from addresses
MAX_STEM_LENGTH = 100
ADDRESSES = ("url", "path")  # the first of these columns that is there
OPTIONAL_COLUMNS = ("label", "name")
COMMIT_ROWS, COMMIT_SECONDS = 500, 30  # a killed run downloads at most this much again


@dataclass(frozen=True)
class Source:
    """An image listed in the table; `url` is its address without secrets."""

    address: str = field(repr=False)
    url: str
    label: str = ""
    name: str = ""

    def relative_path(self, suffix: str) -> str:
        """Its path in the landing folder; `suffix` is used if its name has no image suffix."""
        file_name = self.name or unquote(urlsplit(self.url).path).rpartition("/")[2]
        path = PurePosixPath(file_name)
        if path.suffix.lower() in SUFFIXES:
            file_name, suffix = path.stem, path.suffix
        if not self.name:  # different addresses may end in the same name
            ending = f"-{sha256(self.url.encode()).hexdigest()[:10]}"
            stem = NO_NAME.sub("_", file_name).strip(" .")[:MAX_STEM_LENGTH] or "image"
            room = MAX_LABEL_BYTES - len(ending) - len(suffix)  # a letter may have four bytes
            file_name = f"{stem.encode()[:room].decode(errors='ignore')}{ending}"
        return f"{self.label}/{file_name}{suffix}" if self.label else f"{file_name}{suffix}"


@dataclass(frozen=True)
class FetchOutcome:
    """The result of downloading an image; the fields are the columns of fetched_images."""

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
        """The same image, downloaded or unchanged."""
        return replace(self, state=FETCHED, reason=None, message=None)

    def failed(self, error: NotFetched) -> "FetchOutcome":
        """The same image after a failed download; a file from an earlier download stays."""
        return replace(self, state=FAILED, reason=error.reason, message=error.message)


def refusal_of(source: Source, names: NameFilter) -> NotFetched | None:
    """Why a row of the table cannot be downloaded; None if it can."""
    if not source.address:
        return NotFetched("bad_address", "the row has no address")
    if "@" in urlsplit(source.address).netloc:
        return NotFetched("password", "the address contains an account or a password: remove it")
    if source.label and (why := label_problem(source.label)):
        return NotFetched("bad_label", f"{source.label[:80]!r} is not a valid label: {why}")
    if source.name and (why := label_problem(f"{source.name}.jpeg")):  # the longest suffix that may be added
        return NotFetched("bad_name", f"{source.name[:80]!r} is not a valid file name: {why}")
    # Without a suffix in its name, the content decides.
    if any(names.takes(source.relative_path(suffix)) for suffix in SUFFIXES):
        return None
    return skipped(source.relative_path(".jpeg"), names)


def skipped(relative_path: str, names: NameFilter) -> NotFetched | None:
    """Why a file may not land at this path: no listing would have it. None if it may."""
    why = names.why_skipped(relative_path)
    return NotFetched("bad_name", f"{why}: choose another label or name") if why else None


def to_sources(rows: pa.Table, names: NameFilter) -> tuple[list[Source], dict[str, NotFetched], int]:
    """The images listed in the table, each once.

    Returns:
        The images, the errors of invalid addresses by url, and the number of addresses that are left out because they
        differ from another one only in secrets, fragments or empty parameters.
    """
    named: dict[str, set[Source]] = defaultdict(set)
    refused: dict[str, NotFetched] = {}
    for row in rows.to_pylist():
        address, label, name = ((row.get(column) or "").strip() for column in (rows.column_names[0], "label", "name"))
        if not (address or label or name):
            continue
        try:
            source = Source(address, redacted(address), label, name)
        except ValueError:  # it cannot be parsed, so secrets in it cannot be found: it is shown by a hash
            number = sha256(address.encode()).hexdigest()[:10]
            refused[f"address {number}"] = NotFetched("bad_address", "it is not a valid address")
            continue
        if error := refusal_of(source, names):
            refused[source.url] = error
        else:
            named[source.url].add(source)
    for url, ways in named.items():
        if len({(source.label, source.name) for source in ways}) > 1:
            refused[url] = NotFetched("contradictory", "several rows give it different labels or names: keep one")
    wanted = [min(ways, key=lambda source: source.address) for url, ways in named.items() if url not in refused]
    left_out = sum(len(named[source.url]) - 1 for source in wanted)
    return wanted, refused, left_out


class Fetching:
    """Downloads sources into the landing folder in parallel.

    `previous` holds earlier results by url; of those whose url is not `named` in the table, the files may be replaced.
    """

    def __init__(
        self,
        files: RemoteFiles,
        image_folder: ImageFolder,
        previous: Mapping[str, FetchOutcome],
        named: Collection[str],
    ) -> None:
        self.files, self.previous = files, previous
        self.root, self.landing, self.names = image_folder.root, image_folder.path, image_folder.name_filter()
        landed = [(self.relative_path(outcome), outcome) for outcome in previous.values() if outcome.path]
        self.replaceable = {path: outcome for path, outcome in landed if outcome.url not in named}
        self.url_by_path = {path: outcome.url for path, outcome in landed if outcome.url in named}
        self.lock = Lock()

    def relative_path(self, outcome: FetchOutcome) -> str:
        """The file's path in the landing folder; empty if it is not in this folder."""
        path = (outcome.path or "").removeprefix(f"{self.landing}/")
        return "" if path == outcome.path else unquote(path)

    def all(self, sources: Sequence[Source], at_once: int) -> Iterator[FetchOutcome]:
        """The result of each source, as they complete."""
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="fetch")
        try:
            for done in as_completed([pool.submit(self.one, source) for source in sources]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, source: Source) -> FetchOutcome:
        """The result of one source; unchanged if the server's copy did not change."""
        previous = self.previous.get(source.url, FetchOutcome(source.url))
        before = self.relative_path(previous)
        stays = bool(before) and source.relative_path(PurePosixPath(before).suffix) == before
        try:
            stays = stays and landed_files.exists(self.root, before)
            fetched = self.files.fetch(source.address, (previous.stamp or "") if stays else "")
            if fetched is None:
                return previous.fetched
            with fetched.file:
                return self.landed(source, fetched, previous, stays=stays)
        except NotFetched as error:
            return previous.failed(error)
        except UNREACHABLE as error:
            why = f"cannot write to the landing folder: {getattr(error, 'strerror', None) or error}"
            return previous.failed(NotFetched("not_written", why))

    def landed(self, source: Source, fetched: Fetched, previous: FetchOutcome, *, stays: bool) -> FetchOutcome:
        """Moves a downloaded file to its path, and removes an earlier download from another path."""
        start = fetched.file.read(SIGNATURE_BYTES)
        fetched.file.seek(0)
        kind = format_of(start)
        if kind is None:
            raise NotFetched("not_an_image", f"{fetched.length:,} bytes: {not_an_image(start)}")
        if stays and previous.image_id == fetched.digest:  # the same bytes: the file keeps its time
            return replace(previous.fetched, stamp=fetched.stamp)
        before, relative_path = self.relative_path(previous), source.relative_path(suffix_of(kind))
        if error := skipped(relative_path, self.names):
            raise error
        if not self.claim(source.url, relative_path, fetched.digest):
            landed_files.put(self.root, relative_path, fetched.file)
        if before and before != relative_path:
            landed_files.remove(self.root, before)
        path, now = f"{self.landing}/{escaped(relative_path)}", datetime.now(UTC)
        file = {"path": path, "image_id": fetched.digest, "length": fetched.length}
        return replace(previous.fetched, **file, stamp=fetched.stamp, fetched_at=now)

    def claim(self, url: str, relative_path: str, digest: str) -> bool:
        """Reserves a path; returns whether the image is there, from a killed run. NotFetched if another file has it."""
        path = f"{self.landing}/{escaped(relative_path)}"
        with self.lock:
            if self.url_by_path.get(relative_path) == url:
                return False
            exists = landed_files.exists(self.root, relative_path)
            is_there = exists and has_content(path, digest)
            former = self.replaceable.get(relative_path)
            is_own = is_there or (former is not None and has_content(path, former.image_id or ""))
            if relative_path in self.url_by_path or (exists and not is_own):
                raise NotFetched("name_taken", f"{relative_path} is used by another file: choose another name, or none")
            self.url_by_path[relative_path] = url
            return is_there


OUTCOME_COLUMNS = [of.name for of in fields(FetchOutcome)]


class FetchConfig(dg.Config):
    """Which images to download, and the limits."""

    table: str = Field(
        description="CSV or Parquet file, or Delta table, with a column `url` (or `path`), and optionally `label` and "
        "`name`."
    )
    at_once: int = Field(default=8, ge=1, le=64, description="Number of parallel downloads.")
    megabytes: float = Field(
        default=100, gt=0, le=1e9, description="Maximum file size in MB; larger files are skipped."
    )
    seconds: float = Field(default=60, gt=0, le=1e9, description="Time limit per image, in seconds.")
    attempts: int = Field(default=3, ge=1, le=10, description="Attempts per image if the server does not respond.")
    private_addresses: bool = Field(
        default=False,
        description="Allow web servers with private network addresses, if IMAGE_ASSETS_FETCH_ALLOW does.",
    )
    local_files: bool = Field(
        default=False, description="Allow files on this machine, if IMAGE_ASSETS_FETCH_ALLOW does."
    )


def require_allowed(config: FetchConfig, allowed: Collection[str]) -> None:
    """Raises a ValueError if the config turns on what this machine does not allow."""
    for name in FETCH_PERMISSIONS:
        if getattr(config, name) and name not in allowed:
            raise ValueError(
                f"the run config sets {name}, which this machine does not allow: remove it, or add {name} to "
                "IMAGE_ASSETS_FETCH_ALLOW in the environment of Dagster's processes"
            )


def read_table(source: str) -> ExternalRows:
    """The rows of the table, with the address column first.

    Raises:
        ValueError: There is no address column, or the table's location is not supported.
    """
    require_file_or_s3(source)
    table = ExternalTable(source=source)
    outside = table.read([], [*ADDRESSES, *OPTIONAL_COLUMNS])
    found = [name for name in ADDRESSES if name in outside.rows.column_names]
    if not found:
        raise ValueError(f"{source} has no address column: add a column {' or '.join(ADDRESSES)}")
    more = [name for name in OPTIONAL_COLUMNS if name in outside.rows.column_names]
    return ExternalRows(outside.rows.select([found[0], *more]), outside.version, outside.content)


def read_outcomes(delta_tables: DeltaTables) -> dict[str, FetchOutcome]:
    """The latest result of each address."""
    return {row["url"]: FetchOutcome(**row) for row in delta_tables.read(FETCHED_IMAGES, OUTCOME_COLUMNS).to_pylist()}


def merge_outcomes(
    delta_tables: DeltaTables, outcomes: Sequence[FetchOutcome], previous: Mapping[str, FetchOutcome]
) -> None:
    """Merges the results that differ from the previous ones into fetched_images, in one commit, if there are any."""
    newest = {outcome.url: outcome for outcome in outcomes}
    if changed := [vars(outcome) for url, outcome in newest.items() if previous.get(url) != outcome]:
        rows = pa.Table.from_pylist(changed, to_arrow_schema(FETCHED_IMAGES.columns))
        delta_tables.merge(rows, FETCHED_IMAGES, updates={name: f"new.{name}" for name in OUTCOME_COLUMNS[1:]})


def count_key(outcome: FetchOutcome, before: FetchOutcome | None) -> str:
    """The name under which an outcome is counted."""
    if outcome.state == FAILED:
        return f"failed_{outcome.reason}"
    return "unchanged" if before and before.fetched_at == outcome.fetched_at else "fetched"


def fetch(
    delta_tables: DeltaTables, image_folder: ImageFolder, files: RemoteFiles, rows: pa.Table, at_once: int, log: Logger
) -> Counter[str]:
    """Downloads new and changed images; returns how many were fetched, unchanged, or failed by reason."""
    delta_tables.create(FETCHED_IMAGES)
    landed_files.prepare(image_folder.root)
    previous = read_outcomes(delta_tables)
    sources, refused, left_out = to_sources(rows, image_folder.name_filter())
    log.info(f"the table lists {len(sources):,} images to download; {len(refused):,} addresses are invalid")
    counts = Counter(f"failed_{error.reason}" for error in refused.values())
    if left_out:
        counts[SAME_BUT_FOR_SECRETS] = left_out
        log.warning(
            f"{left_out:,} addresses differ from another one only in secrets (such as token or key), fragments or "
            "empty parameters: one of each is downloaded"
        )
    waiting = [previous.get(url, FetchOutcome(url)).failed(error) for url, error in refused.items()]
    former = former_urls(previous, sources)
    named = {*refused, *(source.url for source in sources)}
    waiting += no_longer_named(previous, {*named, *former.values()})
    earlier = renamed(previous, former)
    moved = {outcome.path: url for url, outcome in earlier.items() if url not in named and outcome.path}
    started = committed = time.monotonic()
    for number, outcome in enumerate(Fetching(files, image_folder, earlier, named).all(sources, at_once), 1):
        counts[count_key(outcome, earlier.get(outcome.url))] += 1
        waiting.append(outcome)
        if outcome.url in former:
            waiting.append(FetchOutcome(former[outcome.url], UNNAMED))
        if outcome.path in moved:  # the file of a url that is no longer in the table is now this one's
            waiting.append(FetchOutcome(moved[outcome.path], UNNAMED))
        if len(waiting) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
            merge_outcomes(delta_tables, waiting, previous)
            waiting, committed = [], time.monotonic()
            progress = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
            log.info(
                f"{number:,} of {len(sources):,} images, {number / (committed - started):,.0f} per second: {progress}"
            )
    merge_outcomes(delta_tables, waiting, previous)
    return counts


def former_urls(previous: Mapping[str, FetchOutcome], sources: Sequence[Source]) -> dict[str, str]:
    """By url, the one that has a source's result in the table of an earlier version, which redacted other values."""
    urls: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        urls[redacted(source.address, was_secret)].append(source.url)
    return {
        only: before
        for before, (only, *others) in urls.items()
        if before in previous and only not in previous and not others
    }


def renamed(outcomes: Mapping[str, FetchOutcome], former: Mapping[str, str]) -> dict[str, FetchOutcome]:
    """The outcomes by url, with the new urls in place of former ones."""
    replaced = set(former.values())
    others = {url: outcome for url, outcome in outcomes.items() if url not in replaced}
    return others | {url: replace(outcomes[before], url=url) for url, before in former.items()}


def no_longer_named(previous: Mapping[str, FetchOutcome], named: Collection[str]) -> list[FetchOutcome]:
    """Failed images that are no longer in the table, so that checks stop reporting them."""
    left = [outcome for url, outcome in previous.items() if outcome.state == FAILED and url not in named]
    return [replace(outcome, state=UNNAMED, reason=None, message=None) for outcome in left]


@dg.asset(kinds={"deltalake"}, pool="fetched_images")
def fetched_images(
    context: dg.AssetExecutionContext, config: FetchConfig, delta_tables: DeltaTables, image_folder: ImageFolder
) -> dg.MaterializeResult:
    """Images downloaded from a table of addresses into the landing folder, with the reason for each failure."""
    # Not from a resource: a run config can replace a resource's values.
    require_allowed(config, read_settings().fetch_allow)
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
            **({SAME_BUT_FOR_SECRETS: counts[SAME_BUT_FOR_SECRETS]} if counts[SAME_BUT_FOR_SECRETS] else {}),
            **{name: count for name, count in sorted(counts.items()) if name.startswith("failed_")},
        }
    )
