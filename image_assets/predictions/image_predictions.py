"""What each serving version says of each image."""

import dagster as dg
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS
from image_assets.scoring import with_answers
from resources.delta_tables import DeltaTables
from resources.inference_device import InferenceDevice
from resources.model_registry import ModelRegistry, ModelVersion

SCORED = ["path", "image_id", "content"]


def with_predictions(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """Rows of image_predictions: the version's answers, and who gave them, where and when."""
    return with_answers(images, registry, version, device).withColumns(
        {
            "model_name": F.lit(registry.name),
            "model_version": F.lit(version.version),
            "framework": F.lit(version.tags.get("framework")),
            "device": F.lit(device),
            "predicted_at": F.current_timestamp(),
        }
    )


@dg.asset(deps=["featured_images", "model_evaluations"], kinds={"pyspark", "deltalake", "mlflow"}, pool="gpu")
def image_predictions(
    delta_tables: DeltaTables, model_registry: ModelRegistry, inference_device: InferenceDevice
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
    change = delta_tables.follow(
        FEATURED_IMAGES,
        SCORED,
        IMAGE_PREDICTIONS,
        by=lambda images: with_predictions(images, model_registry, version, device),
        only={"model_version": version.version},
    )
    return delta_tables.materialized(
        IMAGE_PREDICTIONS,
        change,
        serving_version=str(version.version),
        featured_images_version=images_version,
        framework=version.tags.get("framework", "unknown"),
        device=device,
    )
