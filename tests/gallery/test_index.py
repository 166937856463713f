from pathlib import Path

import pytest

from gallery.index import Index, LiveIndex, read_index
from gallery.queries import Filters, read_choices, read_page
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.mlflow.model_registry import ModelRegistry
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import append, featured, landed
from tests.support.images import colored_jpeg, png
from tests.support.tables import tables_at


def test_a_home_without_tables_has_no_images_and_stays_without(tmp_path: Path) -> None:
    index = read_index(tables_at(tmp_path / "tables"))
    assert read_page(index, Filters()).count == 0
    assert set(index.versions.values()) == {None}
    assert not list(tmp_path.iterdir())


def test_outliers_are_found_with_their_traits(own_home: SmallHome) -> None:
    delta_tables, landing = own_home.delta_tables, own_home.landing
    odd = {"roses/other format.jpg": colored_jpeg(0, 1), "roses/wide.png": png(90, size=(200, 20))}
    files = [landed(landing, name, content, 50) for name, content in odd.items()]
    append(delta_tables, IMAGE_FILES, files)
    images = [featured(file, content, landing) for file, content in zip(files, odd.values(), strict=True)]
    append(delta_tables, FEATURED_IMAGES, images)
    found = {
        image["path"].rpartition("/")[2]: image["traits"]
        for image in read_page(own_home.index(), Filters(outliers=True)).images
    }
    assert "format JPEG" in found["other format.jpg"]
    assert {"wide", "wide for its height", "short"} <= set(found["wide.png"])


def test_few_training_images_make_no_outliers(tmp_path: Path) -> None:
    delta_tables = tables_at(tmp_path / "tables")
    file = landed(tmp_path, "roses/one.png", png(1), 1)
    append(delta_tables, IMAGE_FILES, [file])
    append(delta_tables, FEATURED_IMAGES, [featured(file, png(1), tmp_path)])
    assert read_page(read_index(delta_tables), Filters(outliers=True)).count == 0


def test_pages_never_overlap_and_omit_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallery.queries.PAGE_IMAGES", 7)
    for sort in ("name", "label", "sure"):
        pages = [read_page(index, Filters(sort=sort, page=number)) for number in (1, 2, 3, 4)]
        assert [len(page.images) for page in pages] == [7, 7, 7, 3]
        assert len({image["path"] for page in pages for image in page.images}) == 24
    beyond = read_page(index, Filters(page=99))
    assert (beyond.number, beyond.pages, beyond.first) == (4, 4, 22)


def test_choices_count_files_and_predictions(index: Index) -> None:
    choices = read_choices(index)
    assert choices["label"] == [("roses", 12), ("tulips", 12)]
    assert choices["version"] == [(2, 24), (1, 24)]
    assert choices["framework"] == [(2, "tensorflow"), (1, "torch")]


def test_new_rows_are_in_the_index_after_a_refresh(own_home: SmallHome) -> None:
    delta_tables, landing = own_home.delta_tables, own_home.landing
    registry = ModelRegistry(tracking_uri=f"sqlite:///{own_home.home / 'mlflow.db'}")
    live = LiveIndex(delta_tables, registry)
    before = live.current()
    live.refresh()
    assert live.current() is before  # nothing changed, so nothing was read again
    append(delta_tables, IMAGE_FILES, [landed(landing, "roses/new.png", png(70), 70)])
    live.refresh()
    assert read_page(live.current(), Filters()).count == 25
    assert read_page(before, Filters()).count == 24
