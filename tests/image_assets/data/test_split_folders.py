"""A folder with train, val and test: labels, splits, caches and the evaluation follow it, also in an older home."""

import json
from collections import Counter
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from image_assets.data.featured_images import featured_images
from image_assets.data.folder_checks import folders_give_labels, given_splits_apart
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_splits import image_splits, read_split, training_labels
from image_assets.data.raw_images import raw_images
from image_assets.data.training_cache import find_or_write_cache
from image_assets.models.model_evaluations import predict_test_split
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.table import Table
from resources.devices import InferenceDevice
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder, SplitFolders
from resources.mlflow.model_registry import ModelRegistry
from tests.support.images import png, put
from tests.support.registered_versions import registered, saved_model

pytestmark = pytest.mark.spark

ASSETS = [raw_images, featured_images, grayscale_images, image_splits, folders_give_labels, given_splits_apart]
SPLITS = {"train": "training", "val": "validation", "test": "test"}
COUNTS = {"train": 18, "val": 6, "test": 6}  # of each label: 60 images
# Answers the folder of the file.
CLASSIFIER = """
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            labels = [path.split("/")[-2] for path in model_input["path"]]
            columns = {"label": labels, "probability": 0.75, "probabilities": [[0.25, 0.75]] * len(labels)}
            return pd.DataFrame(columns, index=model_input.index)


    set_model(Classifier())
"""


def put_images(landing: Path) -> None:
    number = 0
    for split, count in COUNTS.items():
        for label in ("daisy", "roses"):
            for _ in range(count):
                put(landing, f"{split}/{label}/{number}.png", png(number))
                number += 1


def run(delta_tables: DeltaTables, landing: Path, split_folders: SplitFolders) -> dg.ExecuteInProcessResult:
    folder = ImageFolder(root=str(landing), settle_seconds=0, split_folders=split_folders)
    resources = {"delta_tables": delta_tables, "image_folder": folder, "duplicate_rules": DuplicateRules()}
    result = dg.materialize(ASSETS, resources=resources, instance=dg.DagsterInstance.ephemeral())
    assert all(check.passed for check in result.get_asset_check_evaluations()) == (split_folders != "off")
    return result


def rows_of(delta_tables: DeltaTables, table: Table, *columns: str) -> pd.DataFrame:
    rows = delta_tables.read(table, ["path", *columns]).to_pandas()
    folders = rows["path"].str.split("/").str[-3:-1]
    return rows.assign(folder=folders.str[0], label_folder=folders.str[1])


def test_labels_splits_caches_and_evaluation_follow_the_folders_also_in_an_older_home(
    delta_tables: DeltaTables, landing: Path, registry: ModelRegistry, home: Path
) -> None:
    put_images(landing)
    # As earlier releases read the folders: three labels, splits by chance.
    run(delta_tables, landing, "off")
    former = rows_of(delta_tables, IMAGE_SPLITS, "label", "split")
    assert (former["label"] == former["folder"]).all()
    assert (former["folder"].map(SPLITS) != former["split"]).any()

    result = run(delta_tables, landing, "auto")
    for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS):
        rows = rows_of(delta_tables, table, "label")
        assert len(rows) == 60
        assert (rows["label"] == rows["label_folder"]).all(), table.name
    rows = rows_of(delta_tables, IMAGE_SPLITS, "split", "given_split", "reason")
    assert (rows["split"] == rows["folder"].map(SPLITS)).all()
    assert rows["given_split"].equals(rows["split"])
    assert rows["reason"].isna().all()
    (made,) = result.asset_materializations_for_node("image_splits")
    assert made.metadata["moved_to_given_splits"].value == 60
    ledger = next(
        made for made in result.asset_materializations_for_node("raw_images") if made.asset_key.path == ["image_files"]
    )
    assert "first-level folders are splits (training, validation, test)" in str(ledger.metadata["folder_layout"].value)

    assert training_labels(delta_tables) == ["daisy", "roses"]
    caches = PetastormCaches(root=str(home / "caches"))
    cached = {split: find_or_write_cache(delta_tables, caches, split, ranks=1)[0].rows for split in SPLITS.values()}
    assert cached == {"training": 36, "validation": 12, "test": 12}
    model = saved_model(CLASSIFIER, home, "model")
    tags = {"framework": "torch", "labels": json.dumps(["daisy", "roses"])}
    version = registered(model, registry, tags, (home / "artifacts").as_uri())
    answers = predict_test_split(version, delta_tables, registry, InferenceDevice(choice="cpu"))
    assert {path.split("/")[-3] for path in answers["path"]} == {"test"}
    assert sorted(answers["path"]) == sorted(read_split(delta_tables, "test")["path"])
    assert (answers["label"] == answers["true_label"]).all()
    assert Counter(answers["true_label"]) == Counter({"daisy": 6, "roses": 6})

    versions = [delta_tables.version(table) for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)]
    run(delta_tables, landing, "auto")
    again = [delta_tables.version(table) for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)]
    assert again == versions, "once recorded, nothing is written again"

    for file in landing.glob("test/*/*.png"):  # as in competitions, whose test images have no labels
        file.rename(landing / "test" / file.name)
    run(delta_tables, landing, "auto")
    assert training_labels(delta_tables) == ["daisy", "roses"]
    tested = read_split(delta_tables, "test")["path"]
    assert {path.split("/")[-3] for path in tested} == {"train"}
    assert read_split(delta_tables, "validation")["path"].str.contains("/val/").all()
