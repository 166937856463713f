"""Predictions of the production version, and of versions in Staging, for every image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from py4j.protocol import Py4JJavaError
from pydantic import Field
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.images.charts import by_label, of_labels, picture_markdown, stacked_bars
from image_assets.images.large_images import with_scaled_content, with_scaled_contents
from image_assets.models.lineage import reading_of
from image_assets.models.scoring import UNREADABLE, predicted_rows, resolve_device, score_images, score_images_guarded
from image_assets.models.version_ids import identify_rows, key_of, of_version, of_versions, registry_warning
from image_assets.predictions.head_predictions import write_head_predictions
from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, PREDICTED_FIRST
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import runs_locally
from resources.delta.following import follow
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.unchanged import describe_once
from resources.delta.writing import write_by_dataframe, write_by_tasks
from resources.devices import Device, InferenceDevice
from resources.mlflow.model_registry import (
    ModelRegistry,
    ModelVersion,
    serving_version,
    shadows,
    version_numbers,
)

CONFIDENCE = {"0.9 or more": 0.9, "0.6 to 0.9": 0.6, "below 0.6": 0.0}  # the lowest probability of each
SCORED_COLUMNS = StructType([FEATURED_IMAGES.columns[name] for name in ("path", "image_id", "length", "content")])
ABSTAINED = "(abstained)"
SHOWN_FAULTS = 20
MAX_ERROR_LENGTH = 2000  # characters of an error in metadata
Scorer = Callable[[DataFrame, ModelRegistry, ModelVersion, str], DataFrame]


def by_confidence(answers: pd.DataFrame) -> pd.DataFrame:
    """Counts predictions (label, probability): a row per label, a column per range of probabilities."""
    of = answers["probability"].to_numpy(np.float64)
    confidence = np.select([of >= least for least in CONFIDENCE.values()], [*CONFIDENCE], default="")
    return by_label(answers.assign(confidence=confidence), "confidence", [*CONFIDENCE])


def answers_metadata(delta_tables: DeltaTables, version: ModelVersion) -> dict[str, dg.MetadataValue]:
    """A chart of all predictions of a version, as metadata; empty if it has none."""
    answered = of_version(version) & pc.field("probability").is_valid()
    answers = delta_tables.read(IMAGE_PREDICTIONS, ["label", "probability"], answered).to_pandas()
    if answers.empty:
        return {}
    answers["label"] = answers["label"].fillna(ABSTAINED)
    title = of_labels("predictions of each label, by probability", answers["label"].nunique())
    picture = stacked_bars(by_confidence(answers), title)
    return {
        "answers": dg.MetadataValue.md(
            picture_markdown(picture, f"{len(answers):,} predictions of version {version.version}")
        )
    }


class PredictionConfig(dg.Config):
    """Which model versions predict."""

    shadows: bool = Field(default=True, description="Whether versions in stage Staging predict as well.")


def with_predictions(
    images: DataFrame,
    registry: ModelRegistry,
    version: ModelVersion,
    device: str,
    scorer: Scorer,
) -> DataFrame:
    """Rows of image_predictions: the version's predictions, with version, device and time.

    Raises:
        DamagedVersion: The version's files have changed since they were logged, or must not be loaded.
    """
    registry.require_files_as_logged(version)
    answered = scorer(with_scaled_content(images, reading_of(version)), registry, version, device)
    columns = {name: F.lit(value) for name, value in version_columns(version, device).items()}
    return answered.withColumns({**columns, "predicted_at": F.current_timestamp()})


def version_columns(version: ModelVersion, device: str) -> Row:
    """The columns of image_predictions that say which version predicted where; the time is not among them."""
    framework = version.tags.get("framework")
    return {**key_of(version), "framework": framework, "device": device}


def write_predictions(
    delta_tables: DeltaTables, new: NewRows, registry: ModelRegistry, version: ModelVersion, device: str
) -> list[WrittenFile]:
    """Writes a version's predictions without Spark; an image on which the version fails gets a fault.

    Raises:
        DamagedVersion, VersionNotLoaded: The version must not or cannot be loaded.
    """
    registry.require_files_as_logged(version)
    columns = {**version_columns(version, device), "predicted_at": datetime.now(UTC)}

    def predicted(images: Iterable[Row]) -> Iterator[Row]:
        scaled = with_scaled_contents(images, reading_of(version))
        for row in predicted_rows(scaled, registry, version, device):
            yield row | columns

    doing = f"version {version.version} predicted"
    read = SCORED_COLUMNS.fieldNames()
    # In one thread: the version itself computes on all cores, and a second process would load it again.
    written = write_by_tasks(
        delta_tables, new, read, IMAGE_PREDICTIONS, by=predicted, doing=doing, task_bytes=new.all_bytes + 1
    )
    return written.files


def scoring_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a version that cannot be loaded, or that fails in an executor."""
    from mlflow.exceptions import MlflowException

    return PySparkException, Py4JJavaError, MlflowException, OSError


def score(delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, device: str) -> Exception | None:
    """Scores the images that the version has not scored yet.

    Versions with an unchanged backbone answer stored embeddings. Of all other images, little work is done in guarded
    processes, which isolate the images that fail. In Spark, MLflow's `spark_udf` is faster, but fails a whole task if
    the model raises or crashes on one image. The images are then scored again in guarded processes.

    Returns:
        The first error in Spark; None if there was none.
    """
    errors: list[Exception] = []

    def files_by(scorer: Scorer, new: NewRows) -> list[WrittenFile]:
        by = partial(with_predictions, registry=registry, version=version, device=device, scorer=scorer)
        doing = f"version {version.version} predicted"
        return write_by_dataframe(delta_tables, new, SCORED_COLUMNS, IMAGE_PREDICTIONS, by=by, doing=doing)

    def prediction_files(new: NewRows) -> list[WrittenFile]:
        columns = {**version_columns(version, "cpu"), "predicted_at": datetime.now(UTC)}
        files, rest = write_head_predictions(delta_tables, new, registry, version, columns)
        if rest is None:
            return files
        if runs_locally(delta_tables.pyspark, rest.all_bytes):
            return files + write_predictions(delta_tables, rest, registry, version, device)
        if not errors:
            try:
                return files + files_by(score_images, rest)
            except scoring_errors() as error:
                registry.require_files_as_logged(version)  # its error is clearer than that of Spark
                errors.append(error)
        return files + files_by(score_images_guarded, rest)

    follow(delta_tables, FEATURED_IMAGES, IMAGE_PREDICTIONS, by=prediction_files, part=key_of(version))
    return errors[0] if errors else None


def fault_metadata(delta_tables: DeltaTables, versions: Sequence[ModelVersion]) -> dict[str, dg.MetadataValue]:
    """Images that versions failed to predict, as metadata: the count, and the first of them.

    Files that nobody could read count only while they are current: others were deleted or replaced.
    """
    failed = of_versions(versions) & pc.field("fault").is_valid()
    rows = delta_tables.read(IMAGE_PREDICTIONS, [*IMAGE_KEYS, "model_version", "fault"], failed).to_pylist()
    if any(row["fault"] == UNREADABLE for row in rows):
        current = set(current_keys(delta_tables).itertuples(index=False, name=None))
        rows = [row for row in rows if row["fault"] != UNREADABLE or (row["path"], row["image_id"]) in current]
    found: dict[str, dg.MetadataValue] = {"faults": dg.MetadataValue.int(len(rows))}
    if rows:
        shown = rows[:SHOWN_FAULTS]
        listed = [f"- `{row['path']}`, version {row['model_version']}: {row['fault']}" for row in shown]
        found["images_with_faults"] = dg.MetadataValue.md("\n".join(listed))
    return found


@dg.asset(
    deps=["featured_images", "image_embeddings", "model_evaluations"],
    kinds={"pyspark", "deltalake", "mlflow"},
    pool="gpu",
    op_tags=PREDICTED_FIRST,
)
def image_predictions(
    context: dg.AssetExecutionContext,
    config: PredictionConfig,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> dg.MaterializeResult:
    """Predicted label and probability for every image, one row per image and model version.

    The production version predicts, and so do versions in stage Staging, whose predictions are only compared. Images
    that a version has already predicted are skipped.
    """
    before = delta_tables.snapshot(IMAGE_PREDICTIONS)
    versions = model_registry.versions()  # read once: the next run handles later stage changes
    serving, shadow_versions = serving_version(versions), shadows(versions) if config.shadows else []
    delta_tables.create(FEATURED_IMAGES)
    # Read before following: the next run handles later changes.
    images_version = delta_tables.last_change(FEATURED_IMAGES)
    metadata: dict[str, dg.MetadataValue] = {}
    identify_rows(delta_tables, versions, IMAGE_PREDICTIONS)
    if warning := registry_warning(delta_tables, IMAGE_PREDICTIONS, versions, model_registry):
        context.log.warning(warning)
        metadata["registry_warning"] = dg.MetadataValue.text(warning)
    predicting = [serving, *shadow_versions] if serving else shadow_versions
    devices: dict[int, Device] = {}
    for version in predicting:
        try:
            devices[version.version] = resolve_device(version, inference_device, delta_tables.pyspark)
            failed = score(delta_tables, model_registry, version, devices[version.version].name)
        except Exception as error:  # whatever is wrong with a shadow, the serving version has predicted
            if version == serving:
                raise
            metadata[f"shadow_v{version.version}_failed"] = dg.MetadataValue.text(str(error)[:MAX_ERROR_LENGTH])
            continue
        if failed:
            context.log.warning(
                f"Version {version.version} failed on a batch, so its images were scored in guarded processes. "
                f"See `faults` in the metadata. The error: {failed}"
            )
    if serving is None:
        metadata["remedy"] = dg.MetadataValue.text("Promote a model version.")
    described = describe_once(
        delta_tables,
        IMAGE_PREDICTIONS.name,
        lambda: fault_metadata(delta_tables, predicting) | (answers_metadata(delta_tables, serving) if serving else {}),
        tables=[IMAGE_PREDICTIONS],
        values=[serving and key_of(serving), *map(key_of, shadow_versions)],
    )
    return delta_tables.materialized(
        IMAGE_PREDICTIONS,
        delta_tables.change_since(before, IMAGE_PREDICTIONS),
        serving_version=str(serving.version) if serving else "none",
        serving_version_id=serving.version_id if serving else "none",
        shadow_versions=version_numbers(shadow_versions),
        featured_images_version=images_version,
        framework=serving.tags.get("framework", "unknown") if serving else "none",
        device=devices[serving.version].name if serving else "none",
        device_reason=devices[serving.version].reason if serving else "no version in production",
        **described,
        **metadata,
    )
