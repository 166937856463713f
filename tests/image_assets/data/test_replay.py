"""Quarantined files are checked again on request; those that are images by then get their rows."""

from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.audit import check_states
from image_assets.data.featured_images import featured_images
from image_assets.data.image_files import LedgerEntry, read_ledger
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.data.replayed_files import matching_quarantined, replay, replay_result
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, RAW_IMAGES, REPLAYED_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.image_folder import ImageFolder
from tests.conftest import tables_in
from tests.support.data_run import run_data
from tests.support.images import png, png_of_many_pixels, put

KNOWN = {
    "file:/photos/roses/a 50%25.jpg": LedgerEntry(QUARANTINED, "too_large", None, 0, 1),
    "file:/photos/roses/b.jpg": LedgerEntry(QUARANTINED, "undecodable", None, 0, 1),
    "file:/photos/c.jpg": LedgerEntry(QUARANTINED, "too_large", None, 0, 1),
    "file:/photos/d.jpg": LedgerEntry(CURRENT, None, "1d", 0, 1),
    "file:/photos/e.jpg": LedgerEntry(MISSING, "too_large", None, 0, 1),
}


@pytest.mark.parametrize(
    ("reason", "path", "chosen"),
    [
        ("*", "", ["c.jpg", "roses/a 50%25.jpg", "roses/b.jpg"]),
        ("too_*", "", ["c.jpg", "roses/a 50%25.jpg"]),
        ("", "roses/*", ["roses/a 50%25.jpg", "roses/b.jpg"]),
        ("too_large", "roses/a 50%.jpg", ["roses/a 50%25.jpg"]),
        ("empty", "", []),
    ],
)
def test_reason_and_path_choose_among_the_quarantined_files(reason: str, path: str, chosen: list[str]) -> None:
    found = matching_quarantined(KNOWN, "file:/photos", reason=reason, path=path)
    assert [name.removeprefix("file:/photos/") for name in found] == chosen


def test_a_replay_that_finds_no_file_reports_none(home: Path, image_folder: ImageFolder) -> None:
    tables = tables_in(home, DeltaSpark(spark_config={}, executor="local"))
    ingest(tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    before = tables.snapshot(REPLAYED_FILES)
    files = replay(tables, image_folder, reason="*", path="")
    outcome = (replay_result(tables, before, files).metadata or {})["outcome"]
    assert isinstance(outcome, dg.TableMetadataValue)
    assert (files, outcome.records) == (0, [])


@pytest.mark.spark
def test_a_raised_limit_lets_files_through_and_the_table_tells(delta_tables: DeltaTables, landing: Path) -> None:
    large, wide = (
        put(landing, "large.png", png(1) + bytes(2_000_000)),
        put(landing, "many pixels.png", png_of_many_pixels()),
    )
    put(landing, "text.jpg", b"a text")
    strict = ImageFolder(root=str(landing), settle_seconds=0, size_limit_bytes=1_000_000, decode_memory_bytes=1_000_000)
    ingest(delta_tables, strict, IngestConfig(), dg.get_dagster_logger())
    featured_images(delta_tables=delta_tables, image_folder=strict)
    assert reasons(delta_tables) == {large.name: "too_large", wide.name: "out_of_memory", "text.jpg": "not_an_image"}

    usual = ImageFolder(root=str(landing), settle_seconds=0)
    for _ in range(2):
        replay(delta_tables, usual, reason="*", path="")
        featured_images(delta_tables=delta_tables, image_folder=usual)
    assert reasons(delta_tables) == {large.name: None, wide.name: None, "text.jpg": "not_an_image"}
    for table in (RAW_IMAGES, FEATURED_IMAGES):
        paths = [row.path for row in delta_tables.dataframe(table).select("path").collect()]
        assert sorted(Path(path).name for path in paths) == [large.name, wide.name]
    replayed = delta_tables.dataframe(REPLAYED_FILES).collect()
    assert sorted(
        (Path(row.path).name, row.reason_before, row.state, row.reason, row.attempts) for row in replayed
    ) == [
        ("large.png", "too_large", CURRENT, None, 2),
        ("many pixels.png", "out_of_memory", CURRENT, None, 3),
        ("text.jpg", "not_an_image", QUARANTINED, "not_an_image", 2),
        ("text.jpg", "not_an_image", QUARANTINED, "not_an_image", 3),
    ]
    assert {row.message is None for row in replayed if row.state == CURRENT} == {True}


@pytest.mark.spark
def test_a_file_that_needed_too_much_memory_is_decoded_once_more_by_the_next_run(
    delta_tables: DeltaTables, landing: Path
) -> None:
    put(landing, "many pixels.png", png_of_many_pixels())
    put(landing, "text.jpg", b"a text")
    strict = ImageFolder(root=str(landing), settle_seconds=0, decode_memory_bytes=1_000_000)
    found = []
    for _ in range(4):
        changes = ingest(delta_tables, strict, IngestConfig(part=0), dg.get_dagster_logger())
        featured_images(delta_tables=delta_tables, image_folder=strict)
        rows = delta_tables.read(IMAGE_FILES, ["path", "reason", "attempts"]).to_pylist()
        (row,) = [row for row in rows if row["path"].endswith("pixels.png")]
        found.append((len(changes.to_read), row["reason"], row["attempts"]))
        (rule,) = [rule for rule in check_states(delta_tables, strict) if "recorded as it is" in rule.text]
        assert rule.result().broken == 0
    assert found == [(2, "out_of_memory", 2), (1, "out_of_memory", 3), (0, "out_of_memory", 3), (0, "out_of_memory", 3)]


@pytest.mark.spark
def test_a_retried_file_that_decodes_gets_its_rows(delta_tables: DeltaTables, landing: Path) -> None:
    put(landing, "many pixels.png", png_of_many_pixels())
    strict = ImageFolder(root=str(landing), settle_seconds=0, decode_memory_bytes=1_000_000)
    run_data(delta_tables, strict)
    assert reasons(delta_tables) == {"many pixels.png": "out_of_memory"}
    run_data(delta_tables, ImageFolder(root=str(landing), settle_seconds=0))
    assert reasons(delta_tables) == {"many pixels.png": None}
    assert [delta_tables.dataframe(table).count() for table in (RAW_IMAGES, FEATURED_IMAGES)] == [1, 1]


def reasons(delta_tables: DeltaTables) -> dict[str, str | None]:
    return {Path(path).name: known.reason for path, known in read_ledger(delta_tables).items()}
