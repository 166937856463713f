"""A corrected label counts in every table and in training, also in rows that were written before; it can be undone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.featured_images import featured_images
from image_assets.data.folder_layout import FolderLayout
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_samples import image_samples
from image_assets.data.image_splits import image_splits, read_split, training_labels
from image_assets.data.label_corrections import Correction, append_corrections, label_corrections, label_problem
from image_assets.data.labels import outdated_labels, read_labels
from image_assets.data.raw_images import raw_images
from image_assets.data.sound_splits import require_sound_splits
from image_assets.data.training_cache import cache_name
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SAMPLES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import versions_with_new_rows
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.table import Table
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from resources.samples import SampleSize
from tests.gallery.small_home import layout_of, write_photographs
from tests.support.images import png, put

ASSETS = [label_corrections, raw_images, featured_images, grayscale_images, image_samples, image_splits]


def correction(path: str, image_id: str, label: str | None, **more: bool) -> Correction:
    return Correction(path, image_id, label, former_label=None, corrected_by="Ada", **more)


@pytest.mark.parametrize("label", ["", " roses", "a/b", "..", "a\nb", "a\u2028b", "\udcff", "x" * 256, "é" * 128])
def test_what_no_folder_can_be_called_is_no_label(label: str) -> None:
    assert label_problem(label).startswith("it m")


@pytest.mark.parametrize("label", ["roses", "گربه\u200cها", "green\u00a0tea", "👩\u200d🌾", "क्\u200dष", "a\u00adb"])
def test_whatever_else_a_folder_can_be_called_is_a_label(label: str) -> None:
    assert label_problem(label) == ""


def test_the_newest_correction_of_the_very_image_counts(delta_tables: DeltaTables) -> None:
    assert read_labels(delta_tables, FolderLayout("file:/photos")).corrected == {}
    tomorrow = datetime.now(UTC) + timedelta(days=1)  # the clock was wrong, and then set
    first = replace(correction("file:/a", "0", "roses"), corrected_at=tomorrow)
    append_corrections(delta_tables, [first, correction("file:/a", "1", "tulips")])
    append_corrections(delta_tables, [correction("file:/a", "0", None)])
    assert read_labels(delta_tables, FolderLayout("file:/photos")).corrected == {
        ("file:/a", "0"): None,
        ("file:/a", "1"): "tulips",
    }
    result = label_corrections(delta_tables)
    assert isinstance(result, dg.MaterializeResult)
    assert result.metadata is not None
    assert (result.metadata["dagster/row_count"], result.metadata["corrected_images"]) == (3, 2)


def test_rows_with_another_label_than_counts_are_outdated(delta_tables: DeltaTables, landing: Path) -> None:
    images = write_photographs(delta_tables, landing, 6)
    layout = layout_of(landing)
    keys = [(image["path"], image["image_id"]) for image in images]
    assert outdated_labels(delta_tables, FEATURED_IMAGES, layout) == []
    append_corrections(
        delta_tables,
        [correction(*keys[0], "peonies"), correction(*keys[1], None), correction(keys[3][0], "other bytes", "roses")],
    )
    labels = {
        (path, image_id): label for path, image_id, label, _ in outdated_labels(delta_tables, FEATURED_IMAGES, layout)
    }
    assert labels == {keys[0]: "peonies", keys[1]: None}


class Home:
    """The tables of eight balls and eight cubes, and an image without a label."""

    def __init__(self, tables: DeltaTables, folder: ImageFolder) -> None:
        self.tables, self.folder = tables, folder

    def run(self) -> None:
        resources = {
            "delta_tables": self.tables,
            "image_folder": self.folder,
            "duplicate_rules": DuplicateRules(),
            "sample_size": SampleSize(),
        }
        assert dg.materialize(ASSETS, resources=resources, instance=dg.DagsterInstance.ephemeral()).success

    def labels(self, table: Table, *columns: str) -> dict[str, tuple]:
        rows = self.tables.read(table, ["path", "label", *columns]).to_pylist()
        return {row["path"].rpartition("/")[2]: (row["label"], *(row[name] for name in columns)) for row in rows}

    def cache(self) -> str:
        caches, labels = PetastormCaches(root="unused"), training_labels(self.tables)
        return cache_name(self.tables, caches, "training", labels, 1)

    def append_corrections(self, **labels: str | None) -> None:
        keys = {Path(path).stem.replace(" ", "_"): (path, image_id) for path, image_id in self.keys()}
        withdrawn = {name: label == "folder" for name, label in labels.items()}
        append_corrections(
            self.tables,
            [
                correction(*keys[name], name.partition("_")[0] if withdrawn[name] else label, withdrawn=withdrawn[name])
                for name, label in labels.items()
            ],
        )

    def keys(self) -> list[tuple[str, str]]:
        rows = self.tables.read(FEATURED_IMAGES, ["path", "image_id"]).to_pylist()
        return [(row["path"], row["image_id"]) for row in rows]


@pytest.mark.slow
@pytest.mark.spark
def test_a_correction_counts_everywhere_and_can_be_undone(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    for number in range(16):
        label = ("ball", "cube")[number % 2]
        put(landing, f"{label}/{label} {number}.png", png(number))
    put(landing, "stray.png", png(50))
    home = Home(delta_tables, image_folder)
    home.run()
    followed = delta_tables.version(FEATURED_IMAGES)
    before, cache = home.labels(IMAGE_SPLITS, "split"), home.cache()
    trained = [name for name, (label, split) in before.items() if (label, split) == ("ball", "training")]
    first, second = (name.removesuffix(".png") for name in sorted(trained)[:2])

    home.append_corrections(**{first.replace(" ", "_"): "cube", second.replace(" ", "_"): None, "stray": "cube"})
    home.run()
    for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS):
        found = home.labels(table, "label_index")
        assert found[f"{first}.png"] == ("cube", 1), table.name
        assert found[f"{second}.png"] == (None, None), table.name
        assert found["stray.png"] == ("cube", 1), table.name
        assert sorted(label for label, _ in found.values() if label) == ["ball"] * 6 + ["cube"] * 10, table.name
    assert home.labels(IMAGE_SAMPLES)["stray.png"] == ("cube",)
    after = home.labels(IMAGE_SPLITS, "split")
    assert {name: split for name, (_, split) in after.items() if name in before} == {
        name: split for name, (_, split) in before.items()
    }
    assert after["stray.png"][1] is not None
    assert f"{second}.png" not in {path.rpartition("/")[2] for path in read_split(delta_tables, "training")["path"]}
    assert home.cache() != cache
    require_sound_splits(delta_tables)
    assert versions_with_new_rows(delta_tables, FEATURED_IMAGES, followed) == [], "followers see no new images"

    put(landing, "ball/late.png", png(51))
    version = delta_tables.newest_version(IMAGE_SPLITS)
    home.append_corrections(**{first.replace(" ", "_"): "folder", second.replace(" ", "_"): "folder"})
    home.run()
    assert home.labels(FEATURED_IMAGES)[f"{first}.png"] == ("ball",)
    assert home.labels(IMAGE_SPLITS, "split")[f"{second}.png"] == before[f"{second}.png"]
    pinned = delta_tables.as_of({IMAGE_SPLITS.name: version or 0})
    labels = pinned.read(IMAGE_SPLITS, ["path", "label"]).to_pylist()
    assert {row["label"] for row in labels if row["path"].endswith(f"/{first}.png")} == {"cube"}
    assert len(versions_with_new_rows(delta_tables, FEATURED_IMAGES, followed) or []) == 1
    assert delta_tables.read(FEATURED_IMAGES, ["path"]).num_rows == 18
