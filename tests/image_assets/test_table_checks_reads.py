"""A check whose result is shown again declares every table that it reads."""

from typing import ClassVar

import dagster as dg
import pytest
from PIL import Image

from image_assets.data import data_checks, folder_checks, table_checks
from image_assets.data.image_splits import SplitConfig, image_splits
from image_assets.predictions import prediction_checks
from image_assets.schemas import TABLES
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.delta.unchanged import READS
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from tests.support.data_run import run_data
from tests.support.images import picture, png, put
from tests.support.tables import tables_at

MODULES = [data_checks, folder_checks, table_checks, prediction_checks]
CHECKS = [
    check
    for check in dg.load_asset_checks_from_modules(MODULES)
    if all(spec.metadata.get(READS) for spec in check.check_specs)
]


class RecordingTables(DeltaTables):
    """Tables that record which of them are used, in the class: Dagster copies resources."""

    used: ClassVar[set[str]] = set()

    def uri(self, table: Table) -> str:
        self.used.add(table.name)
        return super().uri(table)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> DeltaTables:
    """Tables with images of two labels, of which one has two pages, one two labels, and one cannot be decoded."""
    home = tmp_path_factory.mktemp("home")
    for number in range(12):
        put(home / "landing", f"{('ball', 'cube')[number % 2]}/{number}.png", png(number))
    put(home / "landing", "cube/0.png", png(0))
    put(home / "landing", "ball/broken.png", png(20)[:40])
    Image.Image.save(picture(30), home / "landing" / "ball" / "pages.tif", save_all=True, append_images=[picture(31)])
    delta_tables, folder = tables_at(home / "tables"), ImageFolder(root=str(home / "landing"), settle_seconds=0)
    run_data(delta_tables, folder)
    image_splits(SplitConfig(), delta_tables=delta_tables, image_folder=folder, duplicate_rules=DuplicateRules())
    for table in TABLES:
        delta_tables.create(table)
    return delta_tables


def test_checks_of_tables_are_found() -> None:
    assert len(CHECKS) > 30


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.check_key.to_user_string())
def test_a_check_declares_all_tables_that_it_reads(check: dg.AssetChecksDefinition, tables: DeltaTables) -> None:
    RecordingTables.used.clear()
    check(delta_tables=RecordingTables(**dict(tables)))
    (spec,) = check.check_specs
    assert RecordingTables.used <= set(str(spec.metadata[READS]).split(", "))
    assert RecordingTables.used
