"""The checks of label conflicts and lost files, on tables without Spark."""

from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from image_assets.data.data_checks import conflicting_labels, no_file_lost
from image_assets.data.image_files import Decision, merge_decisions
from image_assets.data.image_samples import PATHS_PER_GROUP
from image_assets.data.inspection import CURRENT, MISSING
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout
from tests.support.tables import tables_at


@pytest.fixture
def delta_tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path)


def add(delta_tables: DeltaTables, table: Table, rows: list[dict]) -> None:
    delta_tables.create(table)
    files = write_files(
        [{**dict.fromkeys(table.columns.names), **row} for row in rows], delta_tables.uri(table), file_layout(table)
    )
    delta_tables.append_files(table, list(files))


def test_conflicts_are_between_current_images_with_two_labels(delta_tables: DeltaTables) -> None:
    random = Random(0)
    rows = [
        {
            "path": f"file:/{number:03}",
            "image_id": f"image {random.randrange(60):02}",
            "label": random.choice(["rose", "rose", "rose", "lily", None]),
        }
        for number in range(100)
    ]
    groups = {row["image_id"]: f"group {int(row['image_id'][-2:]) // 2}" for row in rows}
    current = {row["path"] for row in rows if random.random() < 0.7}
    add(delta_tables, FEATURED_IMAGES, rows)
    labeled = [row for row in rows if row["label"]]
    add(delta_tables, IMAGE_SPLITS, [{**row, "duplicate_group": groups[row["image_id"]]} for row in labeled])
    states = [(row, CURRENT if row["path"] in current else MISSING) for row in rows]
    merge_decisions(delta_tables, [Decision(row["path"], state, image_id=row["image_id"]) for row, state in states])
    same, near = conflicting_labels(delta_tables)
    for found, by in (
        (same, lambda row: row["image_id"]),
        (near, lambda row: row["label"] and groups[row["image_id"]]),
    ):
        members = defaultdict(list)
        for row in rows:
            if row["path"] in current and by(row):
                members[by(row)].append(row)
        expected = {
            name: (len(group), sorted(row["path"] for row in group)[:PATHS_PER_GROUP])
            for name, group in members.items()
            if len({row["label"] for row in group} - {None}) > 1
            and (found is same or len({row["image_id"] for row in group}) > 1)
        }
        assert expected
        assert {group.name: (group.files, group.paths) for group in found} == expected
        assert [group.files for group in found] == sorted((group.files for group in found), reverse=True)


def test_lost_files_are_counted_in_each_table(delta_tables: DeltaTables) -> None:
    rows = [{"path": f"file:/{number}", "image_id": f"{number}"} for number in range(6)]
    states = [CURRENT] * 4 + [MISSING]
    merge_decisions(
        delta_tables,
        [Decision(row["path"], state, image_id=row["image_id"]) for row, state in zip(rows, states, strict=False)],
    )
    for table, there in ((RAW_IMAGES, rows), (FEATURED_IMAGES, rows[:4]), (GRAYSCALE_IMAGES, rows[2:])):
        add(delta_tables, table, there)
    result = no_file_lost(delta_tables)
    assert not result.passed
    assert {name: value.value for name, value in result.metadata.items()} == {
        **{"missing_in_raw_images": 0, "missing_in_featured_images": 0, "missing_in_grayscale_images": 2},
        "not_in_the_ledger": 1,
    }
