"""What is read off an image is true, and a label keeps its number."""

from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.featured_images import (
    arrivals,
    arrivals_metadata,
    featured_images,
    write_featured,
)
from image_assets.data.image_files import merge_decisions, read_ledger, read_seen_before, to_decision
from image_assets.data.inspection import PENDING
from image_assets.data.label_corrections import Correction, append_corrections
from image_assets.data.labels import extend_label_indexes
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.data.replayed_files import replay
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import rows_with_keys
from resources.files.image_folder import ImageFolder
from tests.gallery.small_home import NOON, append, landed, layout_of, write_photographs
from tests.support.images import jpeg, png, png_of_many_pixels, put
from tests.support.landing import list_files


def test_labels_are_numbered_in_alphabetical_order_and_keep_their_numbers() -> None:
    numbers = extend_label_indexes(["cube", "ball"], {})
    assert numbers == {"ball": 0, "cube": 1}
    assert extend_label_indexes(["cube", "apple", "zebra"], numbers) == {"ball": 0, "cube": 1, "apple": 2, "zebra": 3}
    assert extend_label_indexes([], {}) == {}


@pytest.mark.spark
def test_each_image_has_its_size_mode_format_and_hash(ingested_tables: DeltaTables) -> None:
    rows = ingested_tables.dataframe(FEATURED_IMAGES).collect()
    assert {(row.width, row.height, row.mode, row.format, row.orientation) for row in rows} == {
        (48, 32, "RGB", "PNG", 1)
    }
    assert {(row.label, row.label_index) for row in rows} == {("ball", 0), ("cube", 1)}
    assert len({row.perceptual_hash for row in rows}) == len(rows) == 16
    for row in rows:
        assert bytes(row.content) == Path(row.path.removeprefix("file:")).read_bytes()
        assert row.decode_warning is None


@pytest.mark.spark
def test_a_file_that_changed_meanwhile_is_not_quarantined_for_its_old_bytes(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    put(landing, "a.jpg", jpeg(1)[:-200])
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    put(landing, "a.jpg", jpeg(1))
    (file,) = list_files(image_folder)
    merge_decisions(delta_tables, [to_decision(file, PENDING, "being_written", "still growing", None)])
    featured_images(delta_tables=delta_tables, image_folder=image_folder)
    assert [known.state for known in read_ledger(delta_tables).values()] == [PENDING], "it is read by the next run"
    assert delta_tables.dataframe(FEATURED_IMAGES).count() == 0


@pytest.mark.spark
def test_an_image_that_could_not_be_decoded_before_is_added_once_also_after_a_killed_run(
    delta_tables: DeltaTables, landing: Path
) -> None:
    put(landing, "many pixels.png", png_of_many_pixels())
    put(landing, "small.png", png(2))
    strict = ImageFolder(root=str(landing), settle_seconds=0, decode_memory_bytes=1_000_000)
    usual = ImageFolder(root=str(landing), settle_seconds=0)
    ingest(delta_tables, strict, IngestConfig(), dg.get_dagster_logger())
    featured_images(delta_tables=delta_tables, image_folder=strict)
    assert featured_names(delta_tables) == ["small.png"]

    replay(delta_tables, usual, reason="*", path="")
    attempts = read_attempts(delta_tables)
    # As a run does that is killed between the commit of the rows and that of the ledger.
    (marked,) = read_seen_before(delta_tables)
    lacking = rows_with_keys(delta_tables, RAW_IMAGES, FEATURED_IMAGES, [marked])
    delta_tables.append_files(FEATURED_IMAGES, write_featured(delta_tables, usual, lacking))
    for _ in range(2):
        featured_images(delta_tables=delta_tables, image_folder=usual)
        assert featured_names(delta_tables) == ["many pixels.png", "small.png"]
        assert read_seen_before(delta_tables) == []
        assert read_attempts(delta_tables) == attempts


def featured_names(delta_tables: DeltaTables) -> list[str]:
    return sorted(Path(path).name for path in delta_tables.read(FEATURED_IMAGES, ["path"])["path"].to_pylist())


def read_attempts(delta_tables: DeltaTables) -> dict[str, int]:
    rows = delta_tables.read(IMAGE_FILES, ["path", "attempts"])
    return dict(zip(rows["path"].to_pylist(), rows["attempts"].to_pylist(), strict=True))


MAY_4 = date(2026, 5, 4)


def test_current_files_are_counted_by_day_and_label_also_days_without_any(
    delta_tables: DeltaTables, landing: Path
) -> None:
    images = write_photographs(delta_tables, landing, 5)
    late = landed(landing, "late.png", png(90), 0) | {"first_seen": NOON.replace(day=6)}
    broken = landed(landing, "roses/broken.png", b"", 0) | {"state": "quarantined"}
    append(delta_tables, IMAGE_FILES, [late, broken])
    found = arrivals(delta_tables, layout_of(landing), date(2026, 5, 7))
    assert found.index.tolist() == [MAY_4, date(2026, 5, 5), date(2026, 5, 6)]
    assert found.to_dict("list") == {"no label": [0, 0, 1], "roses": [3, 0, 0], "tulips": [2, 0, 0]}
    append_corrections(delta_tables, [Correction(images[0]["path"], images[0]["image_id"], "tulips", "roses", "Ada")])
    corrected = arrivals(delta_tables, layout_of(landing), date(2026, 5, 7))
    assert (corrected["roses"].tolist(), corrected["tulips"].tolist()) == ([2, 0, 0], [3, 0, 0])


def test_what_came_long_ago_is_not_read(delta_tables: DeltaTables, landing: Path) -> None:
    assert arrivals_metadata(delta_tables, layout_of(landing)) == {}, "no table yet"
    write_photographs(delta_tables, landing, 6)
    assert len(arrivals(delta_tables, layout_of(landing), date(2026, 7, 2))) == 1
    assert arrivals(delta_tables, layout_of(landing), date(2026, 7, 3)).empty
