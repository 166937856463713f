"""Images that a table of addresses names, fetched into the landing folder."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from logging import Logger

import dagster as dg
import pyarrow as pa
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.fetching import FAILED, UNNAMED, Fetching, Outcome, to_sources
from image_assets.schemas import FETCHED_IMAGES
from resources import landed_files
from resources.image_folder import MEBIBYTE, ImageFolder
from resources.object_storage import is_url
from resources.outside_table import OutsideRows, OutsideTable
from resources.remote_files import RemoteFiles
from resources.table_metadata import table_metadata
from resources.thin_tables import ThinTables

ADDRESSES = ("url", "path")  # the first of these columns that is there
MORE = ("label", "name")
COMMIT_ROWS, COMMIT_SECONDS = 500, 30  # a killed run fetches at most this much again
COLUMNS = [of.name for of in fields(Outcome)]


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
    outside = table.read([], [*ADDRESSES, *MORE])
    found = [name for name in ADDRESSES if name in outside.rows.column_names]
    if not found:
        raise ValueError(f"{source} names no image: expected a column {' or '.join(ADDRESSES)}")
    more = [name for name in MORE if name in outside.rows.column_names]
    return OutsideRows(outside.rows.select([found[0], *more]), outside.version, outside.content)


def read_known(thin_tables: ThinTables) -> dict[str, Outcome]:
    """What came of each address so far."""
    return {row["url"]: Outcome(**row) for row in thin_tables.read(FETCHED_IMAGES, COLUMNS).to_pylist()}


def record(thin_tables: ThinTables, outcomes: Sequence[Outcome]) -> None:
    """Merge what came of some images, in one commit; no commit for none."""
    if outcomes:
        rows = pa.Table.from_pylist([vars(outcome) for outcome in outcomes], to_arrow_schema(FETCHED_IMAGES.columns))
        thin_tables.merge(rows, FETCHED_IMAGES, updates={name: f"new.{name}" for name in COLUMNS[1:]})


def word(outcome: Outcome, before: Outcome | None) -> str:
    """What came of an image, in a word to count by."""
    if outcome.state == FAILED:
        return f"failed_{outcome.reason}"
    return "unchanged" if before and before.fetched_at == outcome.fetched_at else "fetched"


def fetch(
    thin_tables: ThinTables, image_folder: ImageFolder, files: RemoteFiles, rows: pa.Table, at_once: int, log: Logger
) -> Counter[str]:
    """Fetch what is new or changed; how many images were fetched, are unchanged, or failed, by reason."""
    thin_tables.create(FETCHED_IMAGES)
    landed_files.prepare(image_folder.root)
    known = read_known(thin_tables)
    sources, refused = to_sources(rows)
    log.info(f"{len(sources):,} images are named; of {len(refused):,} the rows name nothing that can be fetched")
    counts = Counter(f"failed_{error.reason}" for error in refused.values())
    waiting = [known.get(url, Outcome(url)).failed(error) for url, error in refused.items()]
    waiting += no_longer_named(known, {*refused, *(source.url for source in sources)})
    started = committed = time.monotonic()
    for number, outcome in enumerate(Fetching(files, image_folder, known).all(sources, at_once), 1):
        counts[word(outcome, known.get(outcome.url))] += 1
        waiting.append(outcome)
        if len(waiting) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
            record(thin_tables, changed(waiting, known))
            waiting, committed = [], time.monotonic()
            said = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
            log.info(f"{number:,} of {len(sources):,} images, {number / (committed - started):,.0f} a second: {said}")
    record(thin_tables, changed(waiting, known))
    return counts


def no_longer_named(known: Mapping[str, Outcome], named: Collection[str]) -> list[Outcome]:
    """What failed and has left the table: nothing to be warned of any more."""
    left = [outcome for url, outcome in known.items() if outcome.state == FAILED and url not in named]
    return [replace(outcome, state=UNNAMED, reason=None, message=None) for outcome in left]


def changed(outcomes: Sequence[Outcome], known: Mapping[str, Outcome]) -> list[Outcome]:
    """Those that are not what is known already."""
    return [outcome for outcome in outcomes if known.get(outcome.url) != outcome]


@dg.asset(kinds={"deltalake"}, pool="fetched_images")
def fetched_images(
    context: dg.AssetExecutionContext, config: FetchConfig, thin_tables: ThinTables, image_folder: ImageFolder
) -> dg.MaterializeResult:
    """Images that a table of addresses names, in the landing folder: each with what came of it, and why it failed."""
    outside = read_table(config.table)
    files = RemoteFiles(
        most_bytes=int(config.megabytes * MEBIBYTE),
        seconds=config.seconds,
        attempts=config.attempts,
        private_addresses=config.private_addresses,
        local_files=config.local_files,
    )
    counts = fetch(thin_tables, image_folder, files, outside.rows, config.at_once, context.log)
    thin_tables.compact(FETCHED_IMAGES)
    return dg.MaterializeResult(
        metadata={
            **table_metadata(FETCHED_IMAGES, thin_tables.uri(FETCHED_IMAGES), thin_tables.snapshot(FETCHED_IMAGES)),
            "table": config.table,
            "table_content": outside.content,
            **{name: counts[name] for name in ("fetched", "unchanged")},
            **{name: count for name, count in sorted(counts.items()) if name.startswith("failed_")},
        }
    )
