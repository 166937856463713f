"""What commands write on the terminal: emphasis, tables, and how a command ends that cannot go on."""

import os
import re
import sys
from collections.abc import Iterator
from linecache import getline
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO

Look = Literal["strong", "good", "warning", "bad"]
CODES: dict[Look, str] = {"strong": "1", "good": "32", "warning": "33", "bad": "1;31"}

DOCTOR = "run `make doctor`: it tries each part of the set-up and says what to do about what fails"
JAVA = "install Java 17 or 21, or let JAVA_HOME name one; `make doctor` says what is found"
DISK = (
    "make room on the disk (home, IMAGE_ASSETS_CACHES or TMPDIR), and run the same command again: it goes on from there"
)
MLFLOW = "start the MLflow server that MLFLOW_TRACKING_URI names, or leave the variable out"
DATABASE = (
    "start the PostgreSQL that IMAGE_ASSETS_DAGSTER_DATABASE names, correct its address, or leave the variable out"
)
S3 = "check AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
MASTER = "start the Spark cluster that IMAGE_ASSETS_SPARK_MASTER names (`make cluster` for one here), or leave it out"
OTHER_VERSION = "name a new home by IMAGE_ASSETS_HOME, or bring this one up to date as docs/how_to/restore.md says"
LOCKED = "end what else writes in this home (`make dev`, another `make demo`), and run the command again"
MEMORY = "lower IMAGE_ASSETS_PROCESSES or use a machine with more memory; `make doctor` says how much there is"
FILES = "raise the limit in this shell, `ulimit -n 4096`, and run the command again"
# What libraries say, and what a person can do; the first that is found counts.
REMEDIES = (
    (r"No space left on device|database or disk is full|disk I/O error|Disk quota exceeded", DISK),
    (r"Too many open files", FILES),
    (r"JAVA_GATEWAY_EXITED|Java gateway process exited|UnsupportedClassVersionError|java: not found", JAVA),
    (r"run `make s3`", ""),  # what says itself what to do
    (r"out-of-date database schema|Can't locate revision|SchemaOutdated|DELTA_UNSUPPORTED", OTHER_VERSION),
    (r"database is locked", LOCKED),
    (r"psycopg2|PostgreSQL|password authentication failed", DATABASE),
    (r"/api/2\.0/mlflow|MLFLOW_TRACKING_USERNAME|API request to http", MLFLOW),
    (r"EndpointConnectionError|Generic S3 error|S3Exception|endpoint URL|NoCredentials|NoSuchBucket", S3),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|Access Key Id you provided|bucket does not exist|AWS_ENDPOINT_URL", S3),
    (r"All masters are unresponsive|Failed to connect to master|Cannot call methods on a stopped SparkContext", MASTER),
    (r"RankKilled|OutOfMemoryError|Cannot allocate memory|MemoryError", MEMORY),
)
ROOT = Path(__file__).resolve().parent.parent
TOLD = (OSError, ValueError)  # of this project's own code, whose messages say what to do


def emphasized(text: str, look: Look, on: TextIO | None = None) -> str:
    """The text as it stands out where it is printed, by default on stdout."""
    target = on or sys.stdout
    if not target.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{CODES[look]}m{text}\033[0m"


def table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Columns of text under a title."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([emphasized(title, "strong"), *(line.rstrip() for line in lines)])


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it followed from."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def remedy(said: str) -> str | None:
    """What to do about a failure of which this was said; nothing more where that says so itself, None if unknown."""
    return next((do for words, do in REMEDIES if re.search(words, said)), None)


def in_short(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def to_end(error: BaseException) -> str | None:
    """The last words of a command, where it is known what to do; None for what only its traceback explains."""
    chain = list(causes(error))
    do = remedy("\n".join(f"{type(one).__name__}: {one}" for one in chain))
    own = next((one for one in chain if is_own(one)), None)
    if do is None and own is None:
        return None
    what = in_short(own or chain[-1])
    return f"{what}\nWhat to do: {do}" if do else what


def is_own(error: BaseException) -> bool:
    """Whether this project's code raised it, with a message for a person."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, TOLD):
        return False
    file = Path(trace.tb_frame.f_code.co_filename)
    ours = ROOT in file.parents and "site-packages" not in file.parts
    return ours and getline(str(file), trace.tb_lineno).strip().startswith("raise ")


def end_with_what_to_do() -> None:
    """From now on an exception that ends this process is told with what to do about it."""
    sys.excepthook = tell


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what failed and what to do; the traceback only where nothing else is known."""
    from dagster import DagsterExecutionInterruptedError

    if isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
        print("\nInterrupted. The same command again goes on from there.", file=sys.stderr)
        return
    said = to_end(error)
    if said is None:
        sys.__excepthook__(kind, error, trace)
        said = f"What to do: {DOCTOR}"
    first, _, rest = said.partition("\n")
    print(emphasized(first, "bad", sys.stderr) + (f"\n{rest}" if rest else ""), file=sys.stderr)
