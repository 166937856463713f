"""What commands print: styled text, tables, and what to do about an error that stops them."""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from linecache import getline
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, TextIO

Style = Literal["strong", "good", "warning", "bad"]
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # parts of Persian words and of emoji
CODES: dict[Style, str] = {"strong": "1", "good": "32", "warning": "33", "bad": "1;31"}

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "make" if (ROOT / "Makefile").is_file() else "image-assets"  # an installed wheel has no Makefile
OWN = ("benchmarks", "definitions.py", "gallery", "image_assets", "resources", "scripts", "sensors")
EXPLAINED = (OSError, ValueError)  # raised by this project's own code, their messages tell users what to do

DOCTOR = f"Run `{PROGRAM} doctor`: it tests each part of the setup and tells you how to fix what fails."
JAVA = f"Install Java 17 or 21, or point JAVA_HOME at one. `{PROGRAM} doctor` shows which Java it finds."
DISK = "Free disk space (home, IMAGE_ASSETS_CACHES or TMPDIR) and run the command again: it continues where it stopped."
MLFLOW = "Start the MLflow server that MLFLOW_TRACKING_URI points at, or unset the variable."
DATABASE = (
    "Start the PostgreSQL server that IMAGE_ASSETS_DAGSTER_DATABASE points at, fix the address, or unset the variable."
)
S3 = "Check AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
MASTER = f"Start the Spark cluster that IMAGE_ASSETS_SPARK_MASTER points at (try `{PROGRAM} cluster`), or unset it."
OTHER_VERSION = "Set IMAGE_ASSETS_HOME to a new folder, or upgrade this home as described in docs/how_to/restore.md."
LOCKED = f"Stop whatever else uses this home (`{PROGRAM} dev`, another `{PROGRAM} demo`) and run the command again."
MEMORY = f"Lower IMAGE_ASSETS_PROCESSES or use a machine with more memory; `{PROGRAM} doctor` shows how much it has."
JAVA_DIED = (
    "Spark's Java process died, most often because the machine ran out of memory. Close other programs, lower "
    "IMAGE_ASSETS_PROCESSES or use a machine with more memory. Then run the command again: it continues where it "
    "stopped."
)
BROKEN_DATABASE = (
    f"A database of the home is damaged: `{PROGRAM} doctor` names it. Restore it from a backup of the home, or see "
    "docs/how_to/restore.md."
)
BROKEN_LOG = "Launch the job repair_tables, which heals a damaged commit, or restore the home from a backup."
READ_ONLY = "Make the home and everything in it writable for this account, or set IMAGE_ASSETS_HOME to another folder."
FILES = "Raise the limit in this shell (`ulimit -n 4096`) and run the command again."
# What libraries' messages contain, and what to do about it. The first match counts.
REMEDIES = (
    (r"No space left on device|database or disk is full|disk I/O error|Disk quota exceeded", DISK),
    (r"Too many open files", FILES),
    (r"JAVA_GATEWAY_EXITED|Java gateway process exited|UnsupportedClassVersionError|java: not found", JAVA),
    (r"out-of-date database schema|Can't locate revision|SchemaOutdated|DELTA_UNSUPPORTED", OTHER_VERSION),
    (r"database is locked", LOCKED),
    (r"file is not a database|database disk image is malformed", BROKEN_DATABASE),
    (r"attempt to write a readonly database|Read-only file system", READ_ONLY),
    (
        r"Kernel error: Json error|Invalid JSON in log record|DELTA_LOG_FILE_NOT_FOUND|_delta_log.*MalformedJson",
        BROKEN_LOG,
    ),
    (
        r"Answer from Java side is empty|Py4JNetworkError|Connection (refused|reset by peer)[^\n]*\s[^\n]*py4j",
        JAVA_DIED,
    ),
    (r"psycopg2|password authentication failed", DATABASE),
    (r"/api/2\.0/mlflow|API request to http", MLFLOW),
    (r"EndpointConnectionError|Generic S3 error|S3Exception|endpoint URL|NoCredentials|NoSuchBucket", S3),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|Access Key Id you provided|bucket does not exist", S3),
    (r"All masters are unresponsive|Failed to connect to master|Cannot call methods on a stopped SparkContext", MASTER),
    (r"RankKilled|OutOfMemoryError|Cannot allocate memory|MemoryError", MEMORY),
)


def styled(text: str, style: Style, stream: TextIO | None = None) -> str:
    """The text in bold or color if the stream (stdout by default) is a terminal and NO_COLOR is unset."""
    target = stream or sys.stdout
    if not target.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{CODES[style]}m{text}\033[0m"


def printable(text: str) -> str:
    """The text in one line, without the control characters that names of files and labels may contain."""
    return "".join(
        one if one.isprintable() or one in JOINERS else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )


def table(title: str, rows: Sequence[tuple[str, ...]], styles: Mapping[str, Style] = MappingProxyType({})) -> str:
    """Columns of text under a title; cells with one of the given texts are styled."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells = [styled(text, styles[cell]) if cell in styles else text for cell, text in zip(row, padded, strict=True)]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join([styled(title, "strong"), *lines])


def remedy(message: str) -> str | None:
    """What to do about an error of a library; None if unknown."""
    return next((action for pattern, action in REMEDIES if re.search(pattern, message)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and the chain of exceptions that led to it, latest first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def first_line(error: BaseException) -> str:
    """The exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__


def explanation(error: BaseException) -> str | None:
    """What failed and what to do about it; None if only the traceback can explain the error."""
    chain = list(causes(error))
    own = next((one for one in chain if is_own(one)), None)
    others = [one for one in chain if not is_own(one)]
    action = remedy("\n".join(f"{type(one).__name__}: {one} ({raised_in(one)})" for one in others))
    if action is None and own is None:
        return None
    failure = first_line(own or chain[-1])
    return f"{failure}\nWhat to do: {action}" if action else failure


def raised_in(error: BaseException) -> str:
    """The file that raised the exception."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename if frames else ""


def is_own(error: BaseException) -> bool:
    """Whether a `raise` statement of this project raised it, with a message for users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, EXPLAINED):
        return False
    return is_own_raise(trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def is_own_raise(name: str, line: int) -> bool:
    """Whether the line of the file is a `raise` statement of this project."""
    file = Path(name)
    ours = ROOT in file.parents and file.relative_to(ROOT).parts[0] in OWN
    return ours and getline(name, line).strip().startswith("raise ")


def explain_errors() -> None:
    """Make every uncaught exception of this process end with what to do about it."""
    sys.excepthook = print_error


def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what failed and what to do; a traceback only if nothing better is known."""
    from dagster import DagsterExecutionInterruptedError

    if isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
        return
    message = explanation(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        message = f"What to do: {DOCTOR}"
    first, _, rest = message.partition("\n")
    print(styled(first, "bad", sys.stderr) + (f"\n{rest}" if rest else ""), file=sys.stderr)
