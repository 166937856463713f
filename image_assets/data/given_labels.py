"""Labels from a label table, which replace those from folder names."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.folder_layout import FolderLayout, read_layout
from image_assets.data.label_corrections import label_problem
from image_assets.schemas import GIVEN_LABELS, IMAGE_FILES
from resources.delta.delta_log import last_metadata, table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.files.file_system import SCHEME, escaped, is_url, to_path, to_url_path
from resources.files.image_folder import ImageFolder

GIVEN, EMPTY, CONTRADICTORY, UNUSABLE = "given", "empty", "contradictory", "unusable"  # files in the label table
UNNAMED, FOLDER = "unnamed", "folder"
GIVEN_COLUMNS = ["path", "label", "state", "message"]
VERSION_KEY = "label_table_version"
LISTED_LABELS = 20


class GivenLabel(NamedTuple):
    """The label table's result for a file: the columns of given_labels without the path."""

    label: str | None
    state: str
    message: str | None = None


UNLABELLED = GivenLabel(None, EMPTY, "the label table lists the file without a label")
NOT_NAMED = GivenLabel(None, UNNAMED, "the label table does not list the file")


def to_table_path(name: str, landing: str) -> str:
    """The path as our tables write it; a label table may use relative paths, absolute paths or addresses."""
    if is_url(name):
        return to_url_path(name)
    if name.startswith(SCHEME):
        return f"{SCHEME}/{name.removeprefix(SCHEME).lstrip('/')}"
    if name.startswith("/"):
        return to_path(str(PurePosixPath(name)).encode())
    return f"{landing}/{escaped(str(PurePosixPath(name)))}" if name else ""


def to_given(path: str, labels: set[str]) -> GivenLabel:
    """The label of a file with these labels in its rows; none if they contradict each other."""
    if len(labels) > 1:
        listed = ", ".join(repr(label[:80]) for label in sorted(labels)[:LISTED_LABELS])
        return GivenLabel(None, CONTRADICTORY, f"its rows have different labels ({listed}): keep one")
    (label,) = labels
    if not path:
        return GivenLabel(None, UNUSABLE, "a row has a label but no path: add the path of a file")
    if not label:
        return UNLABELLED
    why = label_problem(label)
    return (
        GivenLabel(None, UNUSABLE, f"{label[:80]!r} is not a valid label: {why}") if why else GivenLabel(label, GIVEN)
    )


def read_given(rows: pa.Table, landing: str) -> dict[str, GivenLabel]:
    """The label table's result for each file in it; rows without path and label are skipped."""
    labels: dict[str, set[str]] = defaultdict(set)
    for name, label in zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True):
        path, label = (name or "").strip(), (label or "").strip()
        if path or label:
            labels[to_table_path(path, landing)].add(label)
    return {path: to_given(path, of_path) for path, of_path in labels.items()}


def merge_given_labels(delta_tables: DeltaTables, given: Mapping[str, GivenLabel] | None, layout: FolderLayout) -> int:
    """Updates given_labels from a label table (None: folder names count again); returns the number of changed rows."""
    delta_tables.create(GIVEN_LABELS)
    columns = delta_tables.read(GIVEN_LABELS, GIVEN_COLUMNS)
    there = {
        path: GivenLabel(*fields)
        for path, *fields in zip(*(columns[name].to_pylist() for name in GIVEN_COLUMNS), strict=True)
    }
    if given is None:
        now = {path: GivenLabel(layout.label(path), FOLDER) for path in there}
    else:
        files = delta_tables.read(IMAGE_FILES, ["path"])["path"].to_pylist()
        now = {path: given.get(path, NOT_NAMED) for path in {*files, *given, *there}}
    changed = [{"path": path, **new._asdict()} for path, new in now.items() if there.get(path) != new]
    if changed:
        rows = pa.Table.from_pylist(changed, to_arrow_schema(GIVEN_LABELS.columns))
        delta_tables.merge(rows, GIVEN_LABELS, updates={name: f"new.{name}" for name in GIVEN_COLUMNS[1:]})
    return len(changed)


def files_not_found(delta_tables: DeltaTables) -> list[str]:
    """The files in the label table that were never found in the landing folder."""
    named = delta_tables.read(GIVEN_LABELS, ["path"], ~pc.field("state").isin([UNNAMED, FOLDER]))["path"].to_pylist()
    return sorted(set(named) - set(delta_tables.read(IMAGE_FILES, ["path"])["path"].to_pylist()) - {""})


def label_table_change(instance: dg.DagsterInstance, label_table: ExternalTable) -> str:
    """The label table's version if it changed since it was last read; otherwise empty."""
    version, before = label_table.version(), last_metadata(instance, "given_labels").get(VERSION_KEY, "")
    return "" if version == before else version or "no label table any more"


@dg.asset(deps=["image_files"], kinds={"deltalake"}, pool="given_labels")
def given_labels(
    delta_tables: DeltaTables, image_folder: ImageFolder, label_table: ExternalTable
) -> dg.MaterializeResult:
    """Labels from a table (`IMAGE_ASSETS_LABELS`), used instead of folder names; empty without such a table."""
    layout = read_layout(delta_tables, image_folder)
    outside = label_table.read(["path", "label"]) if label_table.source else None
    changed = merge_given_labels(delta_tables, read_given(outside.rows, layout.landing) if outside else None, layout)
    delta_tables.compact_without_spark(GIVEN_LABELS)
    states = Counter(delta_tables.read(GIVEN_LABELS, ["state"])["state"].to_pylist())
    lineage = {"label_table": label_table.source, "label_table_content": outside.content} if outside else {}
    return dg.MaterializeResult(
        metadata={
            **table_metadata(GIVEN_LABELS, delta_tables.uri(GIVEN_LABELS), delta_tables.snapshot(GIVEN_LABELS)),
            "changed": changed,
            VERSION_KEY: outside.version if outside else "",
            **lineage,
            **{f"files_{state}": count for state, count in sorted(states.items())},
            "files_not_there": len(files_not_found(delta_tables)),
        }
    )
