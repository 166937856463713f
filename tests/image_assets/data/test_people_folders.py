"""Folders as people have them, ingested without Spark: which files have a row, in which state, and with which label."""

from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.featured_images import follow_raw_images
from image_assets.data.image_files import EXCLUDED, NOT_REGULAR
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.image_folder import ImageFolder
from tests.support.images import png, put


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    spark = DeltaSpark(spark_config={})
    return DeltaTables(pyspark=spark, root=str(tmp_path / "tables"))


def run(tables: DeltaTables, folder: ImageFolder) -> dict[str, str]:
    """Ingests the folder; the labels of current images by name, empty for none."""
    ingest(tables, folder, IngestConfig(), dg.get_dagster_logger())
    follow_raw_images(tables, folder)
    current = {name for name, (state, _) in states(tables, folder).items() if state == "current"}
    rows = tables.read(FEATURED_IMAGES, ["path", "label"]).to_pylist()
    labels = {row["path"].removeprefix(f"{folder.path}/"): row["label"] or "" for row in rows}
    return {name: label for name, label in labels.items() if name in current}


def states(tables: DeltaTables, folder: ImageFolder) -> dict[str, tuple[str, str | None]]:
    rows = tables.read(IMAGE_FILES, ["path", "state", "reason"]).to_pylist()
    return {row["path"].removeprefix(f"{folder.path}/"): (row["state"], row["reason"]) for row in rows}


def folder_with(landing: Path, *names: str, **settings: object) -> ImageFolder:
    for number, name in enumerate(names):
        put(landing, name, png(number))
    return ImageFolder(root=str(landing), settle_seconds=0, **settings)  # pyright: ignore[reportArgumentType]


def test_litter_of_an_older_home_is_excluded_and_the_photographs_stay(tables: DeltaTables, tmp_path: Path) -> None:
    litter = [f"daisy/@eaDir/{number}.png/SYNOPHOTO_THUMB_M.png" for number in range(30)]
    names = ["daisy/a.png", "roses/b.png", ".ipynb_checkpoints/a-checkpoint.png", "$RECYCLE.BIN/c.png", *litter]
    former = folder_with(tmp_path / "landing", *names, litter=[])
    assert set(run(tables, former).values()) == {"daisy", "roses", ".ipynb_checkpoints", "$RECYCLE.BIN"}
    folder = ImageFolder(root=former.root, settle_seconds=0)
    assert run(tables, folder) == {"daisy/a.png": "daisy", "roses/b.png": "roses"}
    assert {states(tables, folder)[name] for name in names[2:]} == {("missing", EXCLUDED)}
    assert len(run(tables, former)) == len(names), "taken in again"


def test_split_folders_are_recognized_whenever_they_arrive(tables: DeltaTables, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    folder = folder_with(landing, "train/daisy/0.png", "train/roses/1.png")
    assert set(run(tables, folder).values()) == {"train"}
    put(landing, "val/daisy/2.png", png(2))
    put(landing, "val/roses/3.png", png(3))
    assert run(tables, folder)["val/roses/3.png"] == "roses"
    put(landing, "new/4.png", png(4))
    put(landing, "test/daisy/5.png", png(5))
    labels = run(tables, folder)
    assert (labels["new/4.png"], labels["test/daisy/5.png"]) == ("new", "daisy")


def test_links_have_the_label_of_their_own_folder_if_followed(tables: DeltaTables, tmp_path: Path) -> None:
    landing, pool = tmp_path / "landing", tmp_path / "pool"
    put(pool, "0f/0f3a.png", png(1))
    (landing / "daisy").mkdir(parents=True)
    (landing / "daisy" / "a.png").symlink_to(pool / "0f" / "0f3a.png")
    (landing / "roses").symlink_to(pool / "0f")
    closed = ImageFolder(root=str(landing), settle_seconds=0)
    assert run(tables, closed) == {}
    assert states(tables, closed) == {
        "daisy/a.png": ("quarantined", NOT_REGULAR),
        "roses": ("quarantined", NOT_REGULAR),
    }
    messages = tables.read(IMAGE_FILES, ["message"])["message"].to_pylist()
    assert all("IMAGE_ASSETS_LINK_ROOTS" in message for message in messages)
    followed = ImageFolder(root=str(landing), settle_seconds=0, link_roots=[str(pool)])
    assert run(tables, followed) == {"daisy/a.png": "daisy", "roses/0f3a.png": "roses"}


@pytest.mark.parametrize(
    ("names", "settings", "labels"),
    [
        (["photos/daisy/a.png", "photos/roses/b.png"], {"label_level": 2}, ["daisy", "roses"]),
        (["2023/roses/a.png", "2024/daisy/b.png"], {"label_level": -1}, ["roses", "daisy"]),
        (["Roses/a.png", "roses /b.png"], {"merge_labels": True}, ["roses", "roses"]),
        (["line\nbreak/a.png", "100%/b.png"], {}, ["line\nbreak", "100%"]),
        (["train/daisy/a.png", "test/roses/b.png"], {"split_folders": "off"}, ["train", "test"]),
        (["train/daisy/a.png", "bus/b.png"], {"split_folders": "on"}, ["daisy", "bus"]),
    ],
)
def test_settings_decide_about_labels(
    tables: DeltaTables, tmp_path: Path, names: list[str], settings: dict[str, object], labels: list[str]
) -> None:
    folder = folder_with(tmp_path / "landing", *names, **settings)
    found = run(tables, folder)
    assert [found[name] for name in sorted(found, key=lambda name: name.rpartition("/")[2])] == labels
