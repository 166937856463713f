"""promote_model checks a version before it moves it, and records the change."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc
import pytest
from pyspark.sql import functions as F

from image_assets.jobs.promote_model import gate_predictions, promote_model
from image_assets.jobs.request_promotion import request_promotion, review_promotion
from image_assets.models.promotion_gate import LINEAGE
from image_assets.schemas import IMAGE_SPLITS, STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import ExecutorName
from resources.devices import InferenceDevice
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from tests.support.registered_versions import registered, saved_model, saved_pickle, stages
from tests.support.tables import with_executor

pytestmark = pytest.mark.spark

LABELS = ["ball", "cube"]
CPU = InferenceDevice(choice="cpu")
# Predicts the label in the path, or always the same one. A careless one also predicts a label for broken files.
CLASSIFIER = """
    from io import BytesIO

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel
    from PIL import Image


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            rows = [self.row(*row) for row in model_input[["content", "path"]].itertuples(index=False)]
            columns = ["label", "probability", "probabilities"]
            return pd.DataFrame(rows, columns=columns, index=model_input.index)

        def row(self, content, path):
            try:
                Image.open(BytesIO(content)).load()
            except OSError:
                if {careful}:
                    return None, None, None
            return {label} or path.split("/")[-2], 0.75, [0.75, 0.25]


    set_model(Classifier())
"""


class Account(ModelRegistry):
    """The registry as an account sees it."""

    who: str

    @property
    def account(self) -> str:
        """The account."""
        return self.who


class Platform:
    """The jobs with real tables and a real registry."""

    def __init__(self, tables: DeltaTables, registry: ModelRegistry, folder: Path) -> None:
        self.tables, self.registry, self.folder = tables, registry, folder

    def version(self, name: str, *, label: str | None = None, careful: bool = True, **tags: str | None) -> ModelVersion:
        """A registered version that always predicts `label`, if given; a tag of None is left out."""
        model = saved_model(CLASSIFIER.format(label=repr(label), careful=careful), self.folder, name)
        all_tags: dict[str, str | None] = dict.fromkeys(LINEAGE, "known") | {
            "framework": "torch",
            "labels": json.dumps(LABELS),
        }
        return registered(
            model, self.registry, all_tags | {"backbone": "imagenet", **tags}, (self.folder / "artifacts").as_uri()
        )

    def promote(self, version: ModelVersion, **config: object) -> str:
        """Runs the job; returns why the version was not moved, or an empty text."""
        return self.run(promote_model, "promote", self.registry, version=version.version, **config)

    def run(self, job: dg.JobDefinition, op: str, registry: ModelRegistry, **config: object) -> str:
        """Runs a job of one op; returns why it failed, or an empty text."""
        result = job.execute_in_process(
            run_config={"ops": {op: {"config": config}}},
            resources={
                "delta_tables": self.tables,
                "model_registry": registry,
                "inference_device": CPU,
            },
            raise_on_error=False,
        )
        if result.success:
            return ""
        (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
        details = failure.step_failure_data.user_failure_data
        return (details.description if details else None) or str(failure.step_failure_data.error)

    def history(self) -> list[tuple]:
        """Version, old stage, new stage, person and forced of every change."""
        columns = ["model_version", "from_stage", "to_stage", "person", "forced"]
        rows = self.tables.read(STAGE_HISTORY, [*columns, "changed_at"]).to_pylist()
        return [tuple(row[name] for name in columns) for row in sorted(rows, key=lambda row: row["changed_at"])]


@pytest.fixture
def platform(ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path) -> Platform:
    splits = ingested_tables.dataframe(IMAGE_SPLITS).withColumn("split", F.lit("test"))
    ingested_tables.overwrite(splits.localCheckpoint(), IMAGE_SPLITS)
    return Platform(ingested_tables, registry, tmp_path)


def test_a_good_version_is_promoted_and_a_worse_one_only_by_force(platform: Platform) -> None:
    good, worse = platform.version("good"), platform.version("worse", label="ball")
    assert platform.promote(good, person="Ada", reason="the first one") == ""
    why = platform.promote(worse, person="Bob")
    assert why.startswith("Version 2 stays in stage None. accuracy: 0.500, version 1: 1.000")
    assert stages(platform.registry) == {1: "Production", 2: "None"}
    assert platform.promote(worse, person="Bob", force=True) == ""
    assert platform.promote(worse, stage="Archived") == ""
    assert platform.history() == [
        (1, "None", "Production", "Ada", False),
        (1, "Production", "Archived", "Bob", True),
        (2, "None", "Production", "Bob", True),
        (2, "Production", "Archived", None, False),
    ]
    findings = platform.tables.read(STAGE_HISTORY, ["findings"], pc.field("person").is_null())
    assert findings["findings"].to_pylist() == [None]  # archiving needs no checks


def test_a_stage_that_does_not_exist_is_refused_before_any_check(platform: Platform) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="Production"):
        platform.promote(platform.version("good"), stage="Prodution")


def test_every_failed_check_is_reported(platform: Platform) -> None:
    careless = platform.version("careless", careful=False, backbone="untrained", table_versions=None)
    why = platform.promote(careless, stage="Staging")
    assert "answers: 16 images and 17 broken files: a broken file got the label ball" in why
    assert "backbone: the backbone is untrained" in why
    assert "lineage: tags missing: table_versions" in why
    assert stages(platform.registry) == {1: "None"}
    assert platform.history() == []


def test_both_executors_try_the_same_images(platform: Platform) -> None:
    version = platform.version("tried")
    local, spark = (
        sorted(
            gate_predictions(version, with_executor(platform.tables, executor), platform.registry, CPU)[
                ["path", "broken", "label", "probability"]
            ].itertuples(index=False, name=None),
            key=repr,
        )
        for executor in ("local", "spark")
    )
    assert len(local) == 33
    assert repr(local) == repr(spark)


def test_changed_files_are_never_loaded(platform: Platform) -> None:
    version = platform.version("changed")
    (platform.folder / "changed" / "changed.py").write_text("raise SystemExit('loaded')")
    why = platform.promote(version)
    assert "files: SHA-256 is" in why
    assert "answers" not in why
    assert "also with `force: true`: the files of version 1 of image_class" in platform.promote(version, force=True)
    pickle, created = saved_pickle(platform.folder, "pickle")
    pickled = registered(pickle, platform.registry, {FILES_DIGEST: None}, (platform.folder / "artifacts").as_uri())
    assert "version 2 of image_classifier is not stored as code" in platform.promote(pickled, force=True)
    assert not created.exists()
    assert platform.registry.serving() is None

    platform.registry.promote(version.version, "Production")  # as MLflow's UI does
    assert platform.promote(platform.version("sound")) == ""
    assert stages(platform.registry) == {1: "Archived", 2: "None", 3: "Production"}
    (row,) = (
        platform.tables.read(STAGE_HISTORY, ["model_version", "findings"])
        .filter(pc.field("model_version") == 3)
        .to_pylist()
    )
    details = {finding["check"]: finding["said"] for finding in row["findings"]}
    assert details["accuracy"].startswith("not compared: ")


def test_a_version_without_a_digest_is_only_forced_which_records_its_files(platform: Platform) -> None:
    version = platform.version("unrecorded", **{FILES_DIGEST: None})
    assert "files: tag missing: files_digest" in platform.promote(version)
    assert platform.promote(version, force=True) == ""
    moved = platform.registry.version(version.version)
    assert moved.stage == "Production"
    platform.registry.require_files_as_logged(moved)


def test_without_test_images_nothing_is_promoted(platform: Platform) -> None:
    first, second = platform.version("first"), platform.version("second")
    platform.registry.promote(first.version, "Production")
    none = platform.tables.dataframe(IMAGE_SPLITS).withColumn("split", F.lit("training"))
    platform.tables.overwrite(none.localCheckpoint(), IMAGE_SPLITS)
    why = platform.promote(second)
    assert "stays in stage None. answers: the test split has no images to try the version on" in why
    assert platform.promote(second, force=True) == ""


@pytest.mark.parametrize("executor", ["local", "spark"])
def test_a_serving_version_that_cannot_be_loaded_can_be_replaced(platform: Platform, executor: ExecutorName) -> None:
    platform.tables = with_executor(platform.tables, executor)
    model = saved_model(CLASSIFIER.format(label=None, careful=True), platform.folder, "old")
    (model / "old.py").write_text("import a_package_of_an_earlier_release")
    old = registered(model, platform.registry, {"framework": "torch", "labels": json.dumps(LABELS)}, "file:/nowhere")
    platform.registry.promote(old.version, "Production")
    assert platform.promote(platform.version("sound")) == ""
    assert stages(platform.registry) == {1: "Archived", 2: "Production"}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_version_whose_files_are_gone_says_so(platform: Platform, *, recorded: bool) -> None:
    version = platform.version("gone", **({} if recorded else {FILES_DIGEST: None}))
    assert platform.promote(platform.version("sound")) == ""
    shutil.rmtree(platform.folder / "gone")
    why = platform.promote(version)
    assert why.startswith("Version 1 stays in stage None. files: cannot be read (")
    assert "restore them, or promote another version" in why
    found = "the files of version 1 of image_classifier changed" if recorded else "its files cannot be read"
    assert f"also with `force: true`: {found}" in platform.promote(version, force=True)
    assert stages(platform.registry) == {1: "None", 2: "Production"}


def test_a_request_is_checked_and_another_account_decides(platform: Platform) -> None:
    good, careless = platform.version("good"), platform.version("careless", careful=False)
    uri = platform.registry.tracking_uri
    ada, bob = Account(tracking_uri=uri, who="ada"), Account(tracking_uri=uri, who="bob")

    def review(account: ModelRegistry) -> str:
        config = {"version": good.version, "decision": "approve", "reason": "indeed"}
        return platform.run(review_promotion, "review", account, **config)

    why = platform.run(request_promotion, "request", ada, version=careless.version, reason="try it")
    assert why.startswith("Version 2 was not requested. answers: ")
    assert platform.run(request_promotion, "request", ada, version=good.version, reason="better") == ""
    assert "Account ada requested this promotion" in review(ada)
    assert stages(platform.registry) == {1: "None", 2: "None"}
    assert review(bob) == ""
    assert platform.registry.state()[0] == (1, "Production", ("production",))
    assert "No request for version 1 is waiting" in review(bob)
    columns = ["change", "request", "to_stage", "account", "reason", "source"]
    rows = platform.tables.read(STAGE_HISTORY, columns).to_pylist()
    assert [tuple(row.values()) for row in sorted(rows, key=lambda row: row["change"])] == [
        (1, "requested", "None", "ada", "better", "request_promotion"),
        (2, None, "Production", "bob", "indeed", "review_promotion"),
        (3, "approved", "Production", "bob", "indeed", "review_promotion"),
    ]
