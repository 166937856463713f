"""A small home with photographs, shared by all tests that only read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from image_assets.predictions.image_index import Index, read_index
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelVersion
from tests.gallery.small_home import Row, write_photographs
from tests.support.tables import tables_at


@dataclass(frozen=True)
class SmallHome:
    """A home, its landing folder, the rows of featured_images in the order of their names by number."""

    home: Path
    landing: Path
    images: list[Row]

    @property
    def delta_tables(self) -> DeltaTables:
        return tables_at(self.home / "tables")

    def index(self, models: Sequence[ModelVersion] = ()) -> Index:
        return read_index(self.delta_tables, models)


def small_home(folder: Path, count: int = 24) -> SmallHome:
    home, landing = folder / "a home", folder / "landing"
    images = write_photographs(tables_at(home / "tables"), landing, count)
    return SmallHome(home, landing, images)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> SmallHome:
    """A home with twenty-four photographs; do not change it."""
    return small_home(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def index(photographs: SmallHome) -> Index:
    return photographs.index()


@pytest.fixture
def own_home(tmp_path: Path) -> SmallHome:
    """A home with twenty-four photographs that a test may change."""
    return small_home(tmp_path)
