"""Labels from a label table, which replace those from folder names."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.folder_layout import SPLIT_FOLDERS, FolderLayout, normalized, read_layout
from image_assets.data.inspection import MISSING
from image_assets.data.label_corrections import label_problem
from image_assets.data.label_paths import match_names
from image_assets.schemas import GIVEN_LABELS, IMAGE_FILES, PREDICTED_FIRST
from resources.delta.delta_log import last_metadata, table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import NO_COLUMN, ExternalRows, ExternalTable
from resources.files.file_system import is_url, to_path, to_url_path
from resources.files.image_folder import ImageFolder

# Files in the label table.
GIVEN, EMPTY, CONTRADICTORY, UNUSABLE, AMBIGUOUS = "given", "empty", "contradictory", "unusable", "ambiguous"
UNNAMED, FOLDER = "unnamed", "folder"
GIVEN_COLUMNS = ["path", "label", "state", "message", "matched_by", "attributes"]
VERSION_KEY = "label_table_version"
COLUMN_SETTINGS = ("IMAGE_ASSETS_PATH_COLUMN", "IMAGE_ASSETS_LABEL_COLUMN")
LISTED_LABELS, LISTED_ROWS = 20, 10
# The names that people and programs give the two columns, the first found counts; case, spaces and hyphens are ignored.
PATH_NAMES = (
    *("path", "file", "filename", "file_name", "image", "filepath", "file_path", "image_path", "image_name"),
    *("image_file", "img", "img_path", "image_id"),
)
LABEL_NAMES = ("label", "class", "category", "target", "labels", "class_name", "label_name", "choice", "choices")
# A list or an object, as JSON or as pandas writes it; not [other].
STRUCTURED = re.compile(r"\[([\s\d'\"\[{-].*)?\]|\{(\s*['\"].*)?\}", re.DOTALL)
# Without a column of labels, each label may have a column, with 1 for its images and 0 for the others ("one-hot").
ZERO_OR_ONE = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
ODD_ROWS = 0.1  # the share of rows with several 1s, or with none, above which the columns must have another meaning
NO_LABELS = {"nan", "NaN", "NAN", "None", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "NaT"}  # programs write for none


class GivenLabel(NamedTuple):
    """The label table's result for a file: the columns of given_labels without the path."""

    label: str | None
    state: str
    message: str | None = None
    matched_by: str | None = None
    attributes: Mapping[str, str] | None = None


class LabelRow(NamedTuple):
    """A row of a label table, as it is written.

    `folder` is that of its file, relative to the landing folder; `problem` says why the row has no usable label.
    """

    number: int
    path: str
    label: str
    attributes: Mapping[str, str]
    folder: str = ""
    problem: str = ""


UNLABELED = GivenLabel(None, EMPTY, "the label table lists the file without a label")
NOT_NAMED = GivenLabel(None, UNNAMED, "the label table does not list the file")


def usual_columns(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The columns called by one of the usual names: the first one that any column has."""
    comparable = [name.strip().casefold().replace(" ", "_").replace("-", "_") for name in names]
    wanted = next((name for name in usual if name in comparable), None)
    return [name for name, of in zip(names, comparable, strict=True) if of == wanted]


def to_column(names: Sequence[str], usual: Sequence[str], chosen: str, setting: str) -> str:
    """The column with one of the usual names, or the one that the setting names.

    Raises:
        ValueError: There is none, or several columns have the name.
    """
    found = [name for name in names if name.strip() == chosen] if chosen else usual_columns(names, usual)
    if len(found) == 1:
        return found[0]
    expected = f"one column {chosen}" if chosen else f"one column called {', '.join(usual[:5])} or the like"
    remedy = f"set {setting} to the name of yours, or add a first row with names if there is none"
    raise ValueError(f"expected {expected}, found the columns {', '.join(names)}: {remedy}")


def label_per_column(
    columns: Iterable[tuple[str, Sequence[str | None]]], numbers: Sequence[int], setting: str
) -> list[tuple[str, str]] | None:
    """Each row's label and problem, from one column of 0 and 1 per label; None if there are no such columns.

    Args:
        columns: The names and values of all columns but that of the paths; those without name or values are skipped.
        numbers: The numbers of the rows.
        setting: Names the column of labels; for messages.

    Raises:
        ValueError: There are other columns as well, or many rows have several labels or none.
    """
    cells = [(name.strip(), [(cell or "").strip().casefold() for cell in column]) for name, column in columns]
    cells = [(name, column) for name, column in cells if name and any(column)]
    names = [name for name, column in cells if ZERO_OR_ONE.keys() >= {*column} - {""}]
    if len(names) < 2 or len({*names}) < len(names) or SPLIT_FOLDERS.keys() >= {normalized(name) for name in names}:
        return None  # columns called train and test are no labels
    remedy = f"or set {setting} to the column with the labels"
    listed = ", ".join(names[:LISTED_LABELS])
    if others := [name for name, _ in cells if name not in names]:
        found = f"found no column of labels, but columns of 0 and 1 ({listed}) and others ({', '.join(others)})"
        raise ValueError(f"{found}: if the former are the labels, remove the others; {remedy}")
    labels, none, several = list[tuple[str, str]](), list[int](), list[int]()
    for number, *row in zip(numbers, *(column for _, column in cells), strict=True):
        ones = [name for name, cell in zip(names, row, strict=True) if ZERO_OR_ONE.get(cell)]
        if len(ones) > 1:
            several.append(number)
            labels.append(("", f"it has a 1 in several columns ({', '.join(ones[:LISTED_LABELS])}): keep one"))
        elif not ones and any(row):
            none.append(number)
            labels.append(("", "it has no 1 in any column: write one into that of its label"))
        else:
            labels.append(("".join(ones), ""))
    for rows, what, keep in (
        (several, "several 1s", "keep one in each row, because an image has one label,"),
        (none, "no 1", "write one into each row, leave the cells of images without a label empty,"),
    ):
        if len(rows) > max(1, ODD_ROWS * len(labels)):
            where = f"with {what} in {len(rows):,} of {len(labels):,} rows, such as row {rows[0]}"
            raise ValueError(f"found no column of labels, but columns of 0 and 1 ({listed}) {where}: {keep} {remedy}")
    return labels


def label_rows(
    table: ExternalRows, label_table: ExternalTable, landing: str, settings: tuple[str, str] = COLUMN_SETTINGS
) -> Iterator[LabelRow]:
    """The rows of a label table, with their other columns as attributes; `settings` are named in errors.

    Raises:
        ValueError: It has no column of paths, or neither a column of labels nor one column per label.
    """
    names = table.rows.column_names
    path_column = to_column(names, PATH_NAMES, label_table.path_column, settings[0])
    paths = table.rows[path_column].to_pylist()
    others = [(name, table.rows[at].to_pylist()) for at, name in enumerate(names) if name != path_column]
    labels, chosen = None, label_table.label_column
    if not chosen and not usual_columns(names, LABEL_NAMES):
        labels = label_per_column(others, table.numbers, settings[1])
    if labels:
        others = []
    elif chosen == NO_COLUMN:
        labels = [("", "")] * len(paths)
    else:
        label_column = to_column(names, LABEL_NAMES, chosen, settings[1])
        if path_column == label_column:
            both = " and ".join(settings)
            raise ValueError(f"{both} both name the column {path_column}: set one of them to another one")
        labels = [((label or "").strip(), "") for label in table.rows[label_column].to_pylist()]
        others = [(name, column) for name, column in others if name != label_column]
    columns = {name.strip(): column for name, column in others if name.strip()}
    folders = {folder: relative_folder(folder, landing) for folder in set(table.folders)}
    for at, (path, (label, problem)) in enumerate(zip(paths, labels, strict=True)):
        attributes = {name: column[at].strip() for name, column in columns.items() if (column[at] or "").strip()}
        folder = folders[table.folders[at]] if table.folders else ""
        yield LabelRow(table.numbers[at], (path or "").strip(), label, attributes, folder, problem)


def relative_folder(folder: str, landing: str) -> str:
    """A folder relative to the landing folder; empty if it is not in it."""
    path = to_url_path(folder) if is_url(landing) else to_path(folder.encode("utf-8", "surrogateescape"))
    start = landing.partition("://")[2] if is_url(landing) else landing  # file systems leave the scheme out
    return path.removeprefix(f"{start}/") if path.startswith(f"{start}/") else ""


def numbered(rows: Iterable[LabelRow]) -> str:
    """The numbers of rows, for messages."""
    numbers = sorted({row.number for row in rows})
    listed = ", ".join(f"{number}" for number in numbers[:LISTED_ROWS])
    more = f" and {len(numbers) - LISTED_ROWS:,} more" if len(numbers) > LISTED_ROWS else ""
    return f"{'rows' if len(numbers) > 1 else 'row'} {listed}{more}"


def to_given(rows: Sequence[LabelRow]) -> GivenLabel:
    """The label of a file with these rows; none if they contradict each other."""
    if problems := [f"{numbered([row])}: {row.problem}" for row in rows if row.problem]:
        return GivenLabel(None, UNUSABLE, "; ".join(problems[:LISTED_ROWS]))
    labels = {row.label for row in rows}
    if len(labels) > 1:
        listed = ", ".join(repr(label[:80]) for label in sorted(labels)[:LISTED_LABELS])
        return GivenLabel(None, CONTRADICTORY, f"different labels in {numbered(rows)} ({listed}): keep one")
    (label,) = labels
    if not label:
        return UNLABELED
    why = "it is a list or an object: write the name of one label" if STRUCTURED.fullmatch(label) else None
    if why := why or label_problem(label):
        return GivenLabel(None, UNUSABLE, f"{label[:80]!r} in {numbered(rows)} is not a valid label: {why}")
    return GivenLabel(label, GIVEN)


def read_given(
    rows: Iterable[LabelRow], landing: str, files: Collection[str], problems: Sequence[str] = ()
) -> dict[str, GivenLabel]:
    """The label table's result for each file in it; rows without path and label are skipped.

    Args:
        rows: The label table's rows.
        landing: The landing folder, as a table path.
        files: The files in the landing folder, as table paths.
        problems: What is wrong with rows that could not be read.
    """
    by_name: dict[tuple[str, str], list[LabelRow]] = defaultdict(list)
    for row in rows:
        if row.path or row.label or row.problem:
            by_name[row.path, row.folder].append(row)
    without_path = [row for (path, _), named in by_name.items() if not path for row in named]
    by_name = {name: named for name, named in by_name.items() if name[0]}
    by_path: dict[str, list[LabelRow]] = defaultdict(list)
    matched_by: dict[str, str] = {}
    given: dict[str, GivenLabel] = {}
    for name, match in match_names(by_name, files, landing).items():
        path, *others = match.paths
        if others:
            listed = ", ".join(match.paths[:LISTED_LABELS])
            remedy = "write the path of one of them, or put the table into its folder"
            message = f"the path in {numbered(by_name[name])} may be that of {len(match.paths)} files ({listed})"
            given[match.written] = GivenLabel(None, AMBIGUOUS, f"{message}: {remedy}")
            continue
        by_path[path] += by_name[name]
        if match.kinds:
            matched_by[path] = ", ".join(match.kinds)
    for path, named in by_path.items():
        attributes = {key: value for row in reversed(named) for key, value in row.attributes.items()}
        given[path] = to_given(named)._replace(matched_by=matched_by.get(path), attributes=attributes or None)
    if without_path:
        problems = [*problems, f"{numbered(without_path)} without a path: add the path of a file"]
    if problems:
        more = f"; and {len(problems) - LISTED_ROWS:,} more" if len(problems) > LISTED_ROWS else ""
        given[""] = GivenLabel(None, UNUSABLE, f"{'; '.join(problems[:LISTED_ROWS])}{more}")
    return given


def merge_given_labels(
    delta_tables: DeltaTables, given: Mapping[str, GivenLabel] | None, layout: FolderLayout, *, label_column: str = ""
) -> int:
    """Updates given_labels from a label table; returns the number of changed rows.

    Args:
        delta_tables: The tables.
        given: The label table's results; None if there is no label table any more, and folder names count again.
        layout: Which labels the folders provide.
        label_column: `none` if the label table has attributes only, and folder names provide the labels.
    """
    delta_tables.create(GIVEN_LABELS)
    columns = delta_tables.read(GIVEN_LABELS, GIVEN_COLUMNS)
    there = {
        path: GivenLabel(*fields, attributes=dict(attributes) if attributes else None)
        for path, *fields, attributes in zip(*(columns[name].to_pylist() for name in GIVEN_COLUMNS), strict=True)
    }
    paths = {*there}
    if given is not None:
        paths |= {*given, *delta_tables.read(IMAGE_FILES, ["path"])["path"].to_pylist()}
    now = {path: (given or {}).get(path, NOT_NAMED) for path in paths}
    if given is None or label_column == NO_COLUMN:
        now = {
            path: new
            if new.state in (UNUSABLE, AMBIGUOUS)
            else new._replace(label=layout.label(path), state=FOLDER, message=None)
            for path, new in now.items()
        }
    changed = [{"path": path, **new._asdict()} for path, new in now.items() if there.get(path) != new]
    if changed:
        rows = pa.Table.from_pylist(
            [{**row, "attributes": list((row["attributes"] or {}).items()) or None} for row in changed],
            to_arrow_schema(GIVEN_LABELS.columns),
        )
        delta_tables.merge(rows, GIVEN_LABELS, updates={name: f"new.{name}" for name in GIVEN_COLUMNS[1:]})
    return len(changed)


def files_not_found(delta_tables: DeltaTables) -> list[str]:
    """The files in the label table that were never found in the landing folder."""
    named = ~pc.field("state").isin([UNNAMED, FOLDER, AMBIGUOUS])
    paths = delta_tables.read(GIVEN_LABELS, ["path"], named)["path"].to_pylist()
    return sorted(set(paths) - set(delta_tables.read(IMAGE_FILES, ["path"])["path"].to_pylist()) - {""})


def match_counts(delta_tables: DeltaTables) -> dict[str, int]:
    """How many files the label table writes in another way than they are called, by what differs."""
    named = delta_tables.read(GIVEN_LABELS, ["matched_by"], pc.field("matched_by").is_valid())["matched_by"]
    return dict(sorted(Counter(kind for kinds in named.to_pylist() for kind in kinds.split(", ")).items()))


def given_attributes(delta_tables: DeltaTables, name: str) -> dict[str, str]:
    """The value of one of the label table's other columns, by path; without the files that have none."""
    rows = delta_tables.read(GIVEN_LABELS, ["path", "attributes"], pc.field("attributes").is_valid())
    columns = zip(rows["path"].to_pylist(), rows["attributes"].to_pylist(), strict=True)
    return {path: value for path, attributes in columns if (value := dict(attributes).get(name))}


def label_warnings(delta_tables: DeltaTables) -> list[str]:
    """What looks like mistakes in the labels of the label table, one sentence each."""
    labels = delta_tables.read(GIVEN_LABELS, ["label"], pc.field("state") == GIVEN)["label"].to_pylist()
    counts = Counter(labels)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        spellings[normalized(label)].append(label)

    def listed(labels: Iterable[str]) -> str:
        return ", ".join(f"{label!r} ({counts[label]:,})" for label in [*labels][:LISTED_LABELS])

    several = [
        label
        for label in counts
        if "|" in label or ";" in label or ("," in label and all(part.strip() in counts for part in label.split(",")))
    ]
    return [
        *(
            f"labels differ only in capital letters, spaces or Unicode form: {listed(same)}; write them the same way"
            for same in spellings.values()
            if len(same) > 1
        ),
        *(f"{listed([label])} does not look like a label: leave it empty" for label in counts if label in NO_LABELS),
        *([f"labels look like several labels each: {listed(several)}; an image has one label"] if several else []),
    ]


def label_table_change(instance: dg.DagsterInstance, label_table: ExternalTable) -> str:
    """The label table's version if it changed since it was last read; otherwise empty."""
    version, before = label_table.version(), last_metadata(instance, "given_labels").get(VERSION_KEY, "")
    return "" if version == before else version or "no label table any more"


@dg.asset(deps=["image_files"], kinds={"deltalake"}, pool="given_labels", op_tags=PREDICTED_FIRST)
def given_labels(
    context: dg.AssetExecutionContext, delta_tables: DeltaTables, image_folder: ImageFolder, label_table: ExternalTable
) -> dg.MaterializeResult:
    """Labels from a table (`IMAGE_ASSETS_LABELS`), used instead of folder names; empty without such a table."""
    layout = read_layout(delta_tables, image_folder)
    landing = layout.landing
    outside = label_table.read_all() if label_table.source else None
    given = None
    if outside:
        for note in outside.notes:
            context.log.warning(f"{label_table.source}: {note}")
        rows = label_rows(outside, label_table, landing)
        files = delta_tables.read(IMAGE_FILES, ["path"], pc.field("state") != MISSING)["path"].to_pylist()
        given = read_given(rows, landing, frozenset(files), outside.problems)
    changed = merge_given_labels(delta_tables, given, layout, label_column=label_table.label_column)
    delta_tables.compact_without_spark(GIVEN_LABELS)
    states = Counter(delta_tables.read(GIVEN_LABELS, ["state"])["state"].to_pylist())
    lineage = {"label_table": label_table.source, "label_table_content": outside.content} if outside else {}
    matches = match_counts(delta_tables)
    if matches:
        found = ", ".join(f"{count:,} by {kind}" for kind, count in matches.items())
        context.log.info(f"paths that are written in another way than the files are called: {found}")
    return dg.MaterializeResult(
        metadata={
            **table_metadata(GIVEN_LABELS, delta_tables.uri(GIVEN_LABELS), delta_tables.snapshot(GIVEN_LABELS)),
            "changed": changed,
            VERSION_KEY: outside.version if outside else "",
            **lineage,
            **(
                {"notes": dg.MetadataValue.md("\n".join(f"- {note}" for note in outside.notes))}
                if outside and outside.notes
                else {}
            ),
            **{f"files_{state}": count for state, count in sorted(states.items())},
            **{f"matched_by_{kind}": count for kind, count in matches.items()},
            "files_not_there": len(files_not_found(delta_tables)),
        }
    )
