"""A cache is good when every row is in it, in row groups that are alike; each fault is named."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_assets.data.data_checks import row_group_problems, row_groups_balanced
from image_assets.data.training_cache import find_or_write_cache
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.training import TrainingProcesses

MEGABYTE = 1024 * 1024
GOOD = [(10, MEGABYTE)] * 16


@pytest.mark.parametrize(
    ("groups", "rows", "faults"),
    [
        (GOOD, 160, []),
        ([(1, 3 * MEGABYTE)] * 20, 20, []),  # as small as its images allow
        ([(2, 9)] * 4 + [(1, 4)] * 4, 12, []),  # few images
        (GOOD, 161, ["160 rows, but 161 were written"]),
        (GOOD[:7], 70, ["7 row groups for 2 rank(s): expected 8 or more", "shards of 30 to 40 rows"]),
        ([*[(8, 800_000)] * 98, (8, 30 * MEGABYTE), *[(7, 700_000)] * 27], 981, []),  # one large image
        ([(60, 4 * MEGABYTE)] * 16, 960, ["16 row groups of 4,194,304 bytes: expected about 1 MB"]),
        ([(10, 1000)] * 16, 160, ["16 row groups of 1,000 bytes: expected about 1 MB"]),
        ([(10, MEGABYTE), (8, MEGABYTE)] * 8, 144, ["shards of 64 to 80 rows"]),
    ],
)
def test_each_fault_of_row_groups_is_named(groups: list[tuple[int, int]], rows: int, faults: list[str]) -> None:
    assert row_group_problems(groups, rows, ranks=2) == faults


@pytest.mark.spark
def test_a_cache_is_checked_by_its_footers(ingested_tables: DeltaTables, home: Path) -> None:
    caches = PetastormCaches(root=str(home / "caches"))

    def answer() -> dg.AssetCheckResult:
        result = row_groups_balanced("training")(
            delta_tables=ingested_tables, petastorm_caches=caches, training_processes=TrainingProcesses(processes=2)
        )
        assert isinstance(result, dg.AssetCheckResult)
        return result

    assert "materialize training_cache first" in str(answer().description)
    cache, _ = find_or_write_cache(ingested_tables, caches, "training", ranks=2)
    assert answer().passed
    # Other rows in place of those that were written, in a file of the same length.
    file = Path(cache.files[0].removeprefix("file://"))
    length = file.stat().st_size
    pq.write_table(pa.table({"content": [b""]}), file)
    with file.open("r+b") as whole:
        rest = whole.read()
        whole.seek(0)
        whole.write(b"PAR1".ljust(length - len(rest) + 4, b" ") + rest[4:])
    result = answer()
    assert not result.passed
    assert "rows, but" in str(result.description)
