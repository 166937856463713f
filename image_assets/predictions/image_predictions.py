"""What each serving version says of each image."""

from collections.abc import Callable
from functools import partial

import dagster as dg
import pyarrow.compute as pc
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS
from image_assets.scoring import UNREADABLE, with_answers, with_careful_answers
from resources.delta_tables import DeltaTables
from resources.inference_device import InferenceDevice
from resources.model_registry import ModelRegistry, ModelVersion
from resources.tables import Change
from resources.thin_tables import ThinTables

SCORED = ["path", "image_id", "content"]
SHOWN_FAULTS = 20

Answering = Callable[[DataFrame, ModelRegistry, ModelVersion, str], DataFrame]


def with_predictions(
    images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str, answering: Answering = with_answers
) -> DataFrame:
    """Rows of image_predictions: the version's answers, and who gave them, where and when."""
    return answering(images, registry, version, device).withColumns(
        {
            "model_name": F.lit(registry.name),
            "model_version": F.lit(version.version),
            "framework": F.lit(version.tags.get("framework")),
            "device": F.lit(device),
            "predicted_at": F.current_timestamp(),
        }
    )


def score(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, device: str
) -> tuple[Change, Exception | None]:
    """Score what the version has not scored; and the error that made it ask carefully, image by image, where one did.

    `spark_udf` gives up a whole task for an image on which the model raises, or takes its process down.
    """
    before = delta_tables.snapshot(IMAGE_PREDICTIONS)
    follow = partial(
        delta_tables.follow, FEATURED_IMAGES, SCORED, IMAGE_PREDICTIONS, only={"model_version": version.version}
    )
    failed = None
    try:
        follow(by=partial(with_predictions, registry=registry, version=version, device=device))
    except (PySparkException, Py4JJavaError) as error:
        failed = error
        careful = partial(with_predictions, answering=with_careful_answers)
        follow(by=partial(careful, registry=registry, version=version, device=device))
    return delta_tables.change_since(before, IMAGE_PREDICTIONS), failed


def faults(thin_tables: ThinTables, version: int) -> dict[str, dg.MetadataValue]:
    """The images on which a version failed that it could read, counted and some of them listed."""
    of_version = (pc.field("model_version") == version) & pc.field("fault").is_valid()
    rows = thin_tables.read(IMAGE_PREDICTIONS, ["path", "fault"], of_version & (pc.field("fault") != UNREADABLE))
    found: dict[str, dg.MetadataValue] = {"faults": dg.MetadataValue.int(rows.num_rows)}
    if rows.num_rows:
        listed = [f"- `{row['path']}`: {row['fault']}" for row in rows.slice(0, SHOWN_FAULTS).to_pylist()]
        found["images_with_faults"] = dg.MetadataValue.md("\n".join(listed))
    return found


@dg.asset(deps=["featured_images", "model_evaluations"], kinds={"pyspark", "deltalake", "mlflow"}, pool="gpu")
def image_predictions(
    context: dg.AssetExecutionContext,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> dg.MaterializeResult:
    """Label and probability for every image, one row per image and model version; only what is missing is scored."""
    version = model_registry.serving()
    delta_tables.create(FEATURED_IMAGES)
    images_version = delta_tables.last_change(FEATURED_IMAGES)  # before they are followed: what comes later is news
    if version is None:
        before = delta_tables.snapshot(IMAGE_PREDICTIONS)
        change = delta_tables.change_since(before, IMAGE_PREDICTIONS)
        return delta_tables.materialized(
            IMAGE_PREDICTIONS,
            change,
            serving_version="none",
            featured_images_version=images_version,
            remedy="promote a model version",
        )
    device = inference_device.resolve(delta_tables.spark)
    change, failed = score(delta_tables, model_registry, version, device)
    if failed:
        context.log.warning(
            f"version {version.version} failed on a batch and was asked again, image by image; see faults in the "
            f"metadata, and, for the whole error: {failed}"
        )
    return delta_tables.materialized(
        IMAGE_PREDICTIONS,
        change,
        serving_version=str(version.version),
        featured_images_version=images_version,
        framework=version.tags.get("framework", "unknown"),
        device=device,
        **faults(delta_tables.thin, version.version),
    )
