from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gallery.queries import predictions_of, read_choices, read_image, read_page
from image_assets.predictions.image_filters import Filters
from image_assets.predictions.image_index import Index, LiveIndex, read_index
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.delta.delta_log import LostTable
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import NOON, append, featured, landed, predicted
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


def test_an_image_of_billions_of_pixels_is_an_image_like_others(own_home: SmallHome) -> None:
    file = landed(own_home.landing, "roses/scan.png", png(91), 91)
    append(own_home.delta_tables, IMAGE_FILES, [file])
    image = featured(file, png(91), own_home.landing) | {"width": 50_000, "height": 45_000}
    append(own_home.delta_tables, FEATURED_IMAGES, [image])
    page = read_page(own_home.index(), Filters(sort="large"))
    assert (page.images[0]["path"], page.count) == (file["path"], 25)


def test_few_training_images_make_no_outliers(tmp_path: Path) -> None:
    delta_tables = tables_at(tmp_path / "tables")
    file = landed(tmp_path, "roses/one.png", png(1), 1)
    append(delta_tables, IMAGE_FILES, [file])
    append(delta_tables, FEATURED_IMAGES, [featured(file, png(1), tmp_path)])
    assert read_page(read_index(delta_tables), Filters(outliers=True)).count == 0


def test_pages_never_overlap_and_omit_nothing(index: Index) -> None:
    for sort in ("name", "label", "sure"):
        pages = [read_page(index, Filters(sort=sort, page=number), size=7) for number in (1, 2, 3, 4)]
        assert [len(page.images) for page in pages] == [7, 7, 7, 3]
        assert len({image["path"] for page in pages for image in page.images}) == 24
    beyond = read_page(index, Filters(page=99), size=7)
    assert (beyond.number, beyond.pages, beyond.first) == (4, 4, 22)


def test_choices_count_files_and_predictions(index: Index) -> None:
    choices = read_choices(index, 2, "current")
    assert choices["label"] == [("roses", 12), ("tulips", 12)]
    assert choices["predicted"] == [("roses", 12), ("tulips", 12)], "of version 2; version 1 predicts 13 roses"
    assert choices["state"] == [("current", 24), ("quarantined", 0), ("pending", 0), ("missing", 0)]
    assert choices["version"] == [(2, 24), (1, 24)]
    assert choices["framework"] == [(2, "tensorflow"), (1, "torch")]
    assert read_choices(index, 1, "current")["predicted"] == [("roses", 13), ("tulips", 11)]
    assert read_choices(index, 1, "missing")["predicted"] == [("roses", 0), ("tulips", 0)]
    assert read_choices(index, 1, "missing")["label"] == [("roses", 0), ("tulips", 0)]


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


def test_a_table_that_is_lost_meanwhile_is_reported_until_it_is_back(own_home: SmallHome) -> None:
    live = LiveIndex(own_home.delta_tables, ModelRegistry(tracking_uri=f"sqlite:///{own_home.home / 'mlflow.db'}"))
    assert read_page(live.current(), Filters()).count == 24
    log = own_home.home / "tables" / IMAGE_FILES.name / "_delta_log"
    log.rename(log.with_name("moved"))
    for read in (live.refresh, live.current):
        with pytest.raises(LostTable, match="image_files is gone"):
            read()
    log.with_name("moved").rename(log)
    assert read_page(live.current(), Filters()).count == 24


def test_predictions_are_those_of_the_registrys_version_and_not_of_its_number(own_home: SmallHome) -> None:
    """Version 1 of this registry is not the version 1 that made the predictions that are there."""
    image, *_ = own_home.images
    tags = {FILES_DIGEST: "of this registry"}
    model = ModelVersion(1, "Production", (), "", "", tags, created_at=NOON + timedelta(days=1))
    index = own_home.index([model])
    assert [
        (row["version"], row["label"]) for row in predictions_of(index, read_image(index, image["path"]) or {})
    ] == [(2, "roses")], "it has not predicted yet; nothing is known of version 2"
    for version_id, label in (("of another registry", "another"), ("of this registry", "its own")):
        append(own_home.delta_tables, IMAGE_PREDICTIONS, [predicted(image, 1, label, 0.5, version_id)])
    index = own_home.index([model])
    found = predictions_of(index, read_image(index, image["path"]) or {})
    assert [(row["version"], row["label"]) for row in found] == [(2, "roses"), (1, "its own")]
    former = replace(model, created_at=NOON - timedelta(days=1), tags={})
    index = own_home.index([former])
    found = predictions_of(index, read_image(index, image["path"]) or {})
    assert [(row["version"], row["label"]) for row in found] == [(2, "roses"), (1, "roses")], "rows of earlier releases"
