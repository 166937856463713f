"""The rows of CSV files as spreadsheets and other programs write them, whatever their delimiter and encoding."""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_ROWS = 20
SNIFFED_BYTES = 4096
MAX_LINES_PER_ROW = 10  # in a file with stray quotation marks, where they could go on to its end
QUOTATION_MARKS = "every quotation mark that begins a value must also end it, and those within it are doubled"
UTF_16_SHARE = 0.2  # of the even or the odd bytes that are zero: more than in any other encoding
COMPRESSED = {
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"PK\x03\x04": "is a ZIP file, such as an Excel workbook: save it as CSV",
}
csv.field_size_limit(2**31 - 1)  # Python's limit of 131,072 characters is less than an image in Base64
BYTE_ORDER_MARKS = (  # in this order: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass
class FileRows:
    """The rows of a table in a file, as texts.

    `numbers` are the rows' numbers in the file, `problems` what is wrong with rows that could not be read, and `notes`
    what a person should know about how the file was read.
    """

    names: list[str]
    rows: list[Sequence[str | None]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def decoded(content: bytes) -> tuple[str, str]:
    """The text, and a note if its encoding is a guess.

    Raises:
        ValueError: It is in none of the known encodings.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(encoding), ""
    for signature, what in COMPRESSED.items():
        if content.startswith(signature):
            raise ValueError(f"it {what}")
    start = content[:SNIFFED_BYTES]
    zeros = {"utf-16-le": start[1::2].count(0), "utf-16-be": start[::2].count(0)}  # of Western text: every other byte
    encoding = max(zeros, key=zeros.__getitem__)
    if zeros[encoding] > UTF_16_SHARE * len(start) / 2:
        return content.decode(encoding), f"it has no byte order mark: read as {encoding.upper()}"
    try:
        return content.decode(), ""
    except UnicodeDecodeError:
        return decoded_by_line(content)


def decoded_by_line(content: bytes) -> tuple[str, str]:
    """The text, reading lines that are not UTF-8 as Windows-1252: files put together from several have both."""
    lines, guessed = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            try:
                lines.append(line.decode("cp1252"))
            except UnicodeDecodeError as error:
                found = f"line {number} has the byte 0x{line[error.start]:02X}"
                raise ValueError(f"{found}, which is neither UTF-8 nor Windows-1252: save the file as UTF-8") from error
            guessed.append(number)
    example = lines[guessed[0] - 1].strip()[:80]
    lines_guessed = f"{len(guessed):,} lines are" if len(guessed) > 1 else f"line {guessed[0]:,} is"
    note = f"{lines_guessed} not UTF-8 and read as Windows-1252 (cp1252), a guess; line {guessed[0]:,} is {example!r}"
    return "\n".join(lines), f"{note}. If that is wrong, save the file as UTF-8"


def delimiter_of(text: str) -> str:
    """The delimiter that cuts the header and most of the first rows into the same number of columns."""

    def score(delimiter: str) -> tuple[bool, int, int]:
        rows = islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), SAMPLE_ROWS)
        widths = [len(row) for row in rows if row]
        return (widths[0] > 1, widths.count(widths[0]), widths[0]) if widths else (False, 0, 0)

    return max(DELIMITERS, key=score)


def read_delimited(content: bytes) -> FileRows:
    """The rows of a CSV file; all values stay as they are written, such as `007` and `NA`.

    Raises:
        ValueError: There is no header, or the encoding is unknown.
    """
    text, note = decoded(content)
    first, _, rest = text.partition("\n")
    skipped_lines, delimiter = 0, ""
    if first.lower().startswith("sep=") and len(first.rstrip("\r")) == len("sep=") + 1:  # tells Excel the delimiter
        text, skipped_lines, delimiter = rest, 1, first[len("sep=")]
    delimiter = delimiter or delimiter_of(text)
    try:
        table = to_table(csv_rows(text, delimiter), delimiter, skipped_lines)
    except csv.Error:
        table = to_table(rows_of_lines(text, delimiter), delimiter, skipped_lines)
    if note:
        table.notes.append(note)
    return table


def csv_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """The rows of a text; raises csv.Error where its quotation marks make no sense."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def rows_of_lines(text: str, delimiter: str) -> Iterator[list[str] | csv.Error]:
    """The same for each row alone; where that is impossible, the error of one line."""
    lines = list(io.StringIO(text, newline=""))
    at = 0
    while at < len(lines):
        rows, used = first_rows(lines[at : at + MAX_LINES_PER_ROW], delimiter)
        yield from rows
        at += used


def first_rows(lines: Sequence[str], delimiter: str) -> tuple[Sequence[list[str] | csv.Error], int]:
    """What as few lines as possible hold, and how many these are."""
    errors: list[csv.Error] = []
    for used in range(1, len(lines) + 1):
        try:
            return [*csv_rows("".join(lines[:used]), delimiter)], used
        except csv.Error as error:
            errors.append(error)
            if "unexpected end" not in str(error):  # else the quotation mark may end in the next line
                break
    return errors[:1], 1


def to_table(rows: Iterable[list[str] | csv.Error], delimiter: str, skipped_lines: int) -> FileRows:
    """The rows below the header, which is the first one; a ValueError if there is none."""
    table = None
    for number, row in enumerate(rows, skipped_lines + 1):
        if isinstance(row, csv.Error):
            if table is None:
                raise ValueError(f"its header cannot be read ({row}): {QUOTATION_MARKS}")
            table.problems.append(f"row {number} cannot be read ({row}): {QUOTATION_MARKS}")
        elif not any(cell.strip() for cell in row):
            continue
        elif table is None:
            table = FileRows([name.strip() for name in row])
        elif (width := len(table.names)) > len(row):
            table.problems.append(f"row {number} has {len(row)} of {width} columns: add the others")
        elif any(cell.strip() for cell in row[width:]):
            remedy = f"quote values that contain {delimiter!r}"
            table.problems.append(f"row {number} has {len(row)} columns, the header has {width}: {remedy}")
        else:
            table.rows.append(row[:width])
            table.numbers.append(number)
    if table is None:
        raise ValueError("it is empty: expected a header and rows")
    return table
