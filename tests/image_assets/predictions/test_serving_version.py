"""Which version's predictions are made and shown when a run is disturbed: the last good one keeps serving."""

import py_compile
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient
from pyspark.errors import PySparkException

from image_assets.models.scoring import score_images, score_images_guarded
from image_assets.predictions.prediction_checks import same_registry
from image_assets.schemas import CURRENT_PREDICTIONS, FEATURED_IMAGES, IMAGE_PREDICTIONS
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.mlflow.model_registry import ALIASES, FILES_DIGEST, SERVING_STAGE, ModelRegistry, ModelVersion
from tests.support.predictions_run import CLASSIFIER, POINTS, home_instance, logged_version, run_predictions
from tests.support.registered_versions import registered, saved_model, saved_pickle, stages

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[3]
IMAGES = 16


class Platform:
    """Sixteen images, which version 1 has predicted."""

    def __init__(self, tables: DeltaTables, registry: ModelRegistry, instance: dg.DagsterInstance, home: Path) -> None:
        self.tables, self.registry, self.instance, self.home = tables, registry, instance, home
        registry.promote(self.version().version, "Production")
        assert self.run().success

    def version(self) -> ModelVersion:
        return logged_version(self.registry, self.home)

    def run(self, registry: ModelRegistry | None = None) -> dg.ExecuteInProcessResult:
        return run_predictions(self.tables, registry or self.registry, self.instance)

    def rows(self, table: Table = IMAGE_PREDICTIONS) -> dict[int, int]:
        """How many images each version has predicted, by the table; none of them twice."""
        rows = self.tables.read(table, ["path", "image_id", "model_version"]).to_pylist()
        assert len({tuple(row.values()) for row in rows}) == len(rows)
        return dict(Counter(row["model_version"] for row in rows))

    def shown(self) -> dict[int, int]:
        return self.rows(CURRENT_PREDICTIONS)

    def moved_in_mlflow(self, version: ModelVersion, stage: str) -> None:
        """What a person does in MLflow's UI, where no check is asked."""
        client = MlflowClient(self.registry.tracking_uri)
        with pytest.warns(FutureWarning):
            client.transition_model_version_stage(
                self.registry.name, str(version.version), stage, archive_existing_versions=True
            )
        if stage == SERVING_STAGE:
            client.set_registered_model_alias(self.registry.name, ALIASES[stage], str(version.version))


@pytest.fixture
def platform(ingested_tables: DeltaTables, registry: ModelRegistry, home: Path) -> Iterator[Platform]:
    with home_instance(home) as instance:
        yield Platform(ingested_tables, registry, instance, home)


class MovedMeanwhile(ModelRegistry):
    """A registry in which a person promotes another version while one is asked."""

    promoted: int

    def require_files_as_logged(self, version: ModelVersion) -> None:
        """Check the version, after the promotion."""
        self.promote(self.promoted, "Production")
        super().require_files_as_logged(version)


def test_a_version_promoted_during_a_run_predicts_in_the_next_and_a_rollback_scores_nothing(platform: Platform) -> None:
    second, third = platform.version(), platform.version()
    platform.registry.promote(second.version, "Production")
    meanwhile = MovedMeanwhile(tracking_uri=platform.registry.tracking_uri, promoted=third.version)
    disturbed = platform.run(meanwhile)
    assert stages(platform.registry) == {1: "Archived", 2: "Archived", 3: "Production"}
    (result,) = disturbed.asset_materializations_for_node("image_predictions")
    assert result.metadata["serving_version"].value == "2"
    assert (platform.rows(), platform.shown()) == ({1: IMAGES, 2: IMAGES}, {2: IMAGES})
    assert platform.run().success
    assert (platform.rows(), platform.shown()) == ({1: IMAGES, 2: IMAGES, 3: IMAGES}, {3: IMAGES})
    platform.registry.promote(1, "Production")
    assert platform.run().success
    assert (platform.rows(), platform.shown()) == ({1: IMAGES, 2: IMAGES, 3: IMAGES}, {1: IMAGES})


def test_a_version_with_other_files_than_were_logged_predicts_nothing_and_the_last_good_one_is_shown(
    platform: Platform,
) -> None:
    version = platform.version()
    (platform.home / "version2" / "version2.py").write_text("raise SystemExit('loaded')")
    platform.moved_in_mlflow(version, "Staging")
    beside = platform.run()
    (result,) = beside.asset_materializations_for_node("image_predictions")
    assert "the files of version 2 of image_classifier changed after they were logged" in str(
        result.metadata["shadow_v2_failed"].value
    )

    platform.moved_in_mlflow(version, "Production")
    failed = platform.run()
    (failure,) = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    assert f"expected SHA-256 {version.tags['files_digest']}. Restore the files" in str(failure.step_failure_data.error)
    assert (platform.rows(), platform.shown()) == ({1: IMAGES}, {1: IMAGES})
    platform.registry.promote(1, "Production")
    assert platform.run().success
    assert (platform.rows(), platform.shown()) == ({1: IMAGES}, {1: IMAGES})


def test_a_version_of_another_registry_with_the_same_number_predicts_for_itself(
    platform: Platform, empty_store: Path
) -> None:
    first = platform.registry.version(1)
    (platform.home / "mlflow.db").unlink()
    none = platform.run()
    (found,) = none.asset_materializations_for_node("image_predictions")
    warning = str(found.metadata["registry_warning"].value)
    assert "none of the versions of image_classifier that rows of image_predictions belong to (version 1)" in warning
    assert "is MLFLOW_TRACKING_URI right" in warning
    assert platform.rows() == {1: IMAGES}

    shutil.copy(empty_store, platform.home / "another.db")
    another = ModelRegistry(tracking_uri=f"sqlite:///{platform.home / 'another.db'}")
    client = MlflowClient(another.tracking_uri, another.tracking_uri)
    client.create_registered_model(another.name)
    for file in ("version1", "version1.py"):
        (platform.home / file).rename(platform.home / f"former {file}")
    second = registered(
        saved_model(
            CLASSIFIER.format(folder="another model").replace("0.75", "0.5").replace("0.25", "0.5"),
            platform.home,
            "version1",
        ),
        another,
        {name: value for name, value in first.tags.items() if name != FILES_DIGEST},
        (platform.home / "artifacts").as_uri(),
    )
    second = another.promote(1, "Production")
    assert (second.version, second.version_id == first.version_id) == (1, False)
    before, after = (
        "has none of the versions of image_classifier",
        "has a different version 1 of image_classifier from the",
    )
    for added, message in ((IMAGES, before), (0, after)):
        (found,) = platform.run(another).asset_materializations_for_node("image_predictions")
        assert found.metadata["rows_added"].value == added
        assert message in str(found.metadata["registry_warning"].value)
    columns = ["version_id", "probability"]
    rows = [platform.tables.read(table, columns).to_pylist() for table in (IMAGE_PREDICTIONS, CURRENT_PREDICTIONS)]
    of_both = [tuple(row.values()) for of_table in rows for row in of_table]
    assert Counter(of_both) == {(first.version_id, 0.75): IMAGES, (second.version_id, 0.5): 2 * IMAGES}
    check = same_registry(delta_tables=platform.tables, model_registry=another)
    assert (check.passed, "MLFLOW_TRACKING_URI" in str(check.description)) == (False, True)


@pytest.mark.parametrize("digest", ["recorded", "missing"])
def test_a_pickled_version_is_never_loaded(platform: Platform, digest: str) -> None:
    model, created = saved_pickle(platform.home, "pickle")
    tags = {"framework": "torch", "labels": '["ball", "cube"]'} | ({} if digest == "recorded" else {FILES_DIGEST: None})
    version = registered(model, platform.registry, tags, (platform.home / "artifacts").as_uri())
    platform.moved_in_mlflow(version, "Production")
    failed = platform.run()
    (failure,) = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    expected = {"recorded": "is not stored as code", "missing": "has no tag files_digest"}
    assert expected[digest] in str(failure.step_failure_data.error)
    assert (platform.rows(), platform.shown()) == ({1: IMAGES}, {1: IMAGES})

    images = platform.tables.dataframe(FEATURED_IMAGES).select("path", "content")  # whoever scores it all the same
    for scorer in (score_images, score_images_guarded):
        with pytest.raises(PySparkException, match="pickle is disallowed"):
            scorer(images, platform.registry, version, "cpu").collect()
    assert not created.exists()


def test_bytecode_that_is_placed_beside_the_code_of_a_version_is_never_run(platform: Platform) -> None:
    version, other, created = platform.version(), platform.home / "other.py", platform.home / "created"
    other.write_text(f"open({str(created)!r}, 'w')")
    code = platform.home / "version2" / "version2.py"
    # Python would run it without a look at the code.
    py_compile.compile(
        str(other), cache_from_source(code), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    platform.moved_in_mlflow(version, "Production")
    assert platform.run().success
    assert platform.shown() == {2: IMAGES}
    images = platform.tables.dataframe(FEATURED_IMAGES).select("path", "content")
    for scorer in (score_images, score_images_guarded):
        assert scorer(images, platform.registry, version, "cpu").filter("label is not null").count() == IMAGES
    assert not created.exists()


@pytest.mark.slow
def test_after_a_kill_the_last_version_is_shown_and_the_next_run_ends_as_an_undisturbed_one(platform: Platform) -> None:
    for number, point in enumerate(POINTS, start=2):
        platform.registry.promote(platform.version().version, "Production")
        command = [sys.executable, "-m", "tests.support.predictions_run", platform.home, point]
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, start_new_session=True, timeout=300
        )
        assert run.returncode == -9, run.stderr[-2000:]
        before = {version: IMAGES for version in range(1, number)}
        assert platform.rows() == (before if point == "before the commit" else before | {number: IMAGES})
        assert platform.shown() in [{version: IMAGES} for version in (number - 1, number)]
        if point != "in current_predictions":
            assert platform.shown() == {number - 1: IMAGES}
        assert platform.run().success
        assert (platform.rows(), platform.shown()) == (before | {number: IMAGES}, {number: IMAGES})
