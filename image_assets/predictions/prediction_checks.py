"""Checks of the predictions group: sound probabilities, nothing unpredicted."""

import dagster as dg
from pyspark.sql import functions as F

from image_assets.current_files import current_files
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, IMAGE_PREDICTIONS
from image_assets.scoring import SUM_TOLERANCE
from resources.delta_tables import DeltaTables
from resources.model_registry import ModelRegistry


@dg.asset_check(asset="image_predictions", description="One row for each image and model version.")
def keys_unique(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Rows with the same keys."""
    repeated = delta_tables.read(IMAGE_PREDICTIONS).groupBy(*IMAGE_PREDICTIONS.keys).count().where("count > 1").count()
    return dg.AssetCheckResult(passed=repeated == 0, metadata={"repeated_keys": repeated})


@dg.asset_check(asset="image_predictions", description="The probabilities of each prediction sum to one.")
def probabilities_sum_to_one(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Predictions whose probabilities are no distribution."""
    total = F.aggregate("probabilities", F.lit(0.0), lambda sum_, each: sum_ + each.cast("double"))
    answered = delta_tables.read(IMAGE_PREDICTIONS).where("label IS NOT NULL")
    wrong = answered.where(F.isnan(total) | (F.abs(total - 1) > SUM_TOLERANCE)).count()
    return dg.AssetCheckResult(passed=wrong == 0, metadata={"predictions_off": wrong})


@dg.asset_check(asset="current_predictions", description="Every current file has a prediction of the serving version.")
def every_file_predicted(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.AssetCheckResult:
    """Current files that the serving version has not been asked about."""
    serving = model_registry.serving()
    version = serving.version if serving else None
    predictions = delta_tables.read(CURRENT_PREDICTIONS).where(F.col("model_version") == F.lit(version))
    current = current_files(delta_tables.read(IMAGE_FILES))
    missing = current.join(predictions, on=["path", "image_id"], how="left_anti").count()
    return dg.AssetCheckResult(
        passed=missing == 0,
        metadata={"files_without_prediction": missing, "serving_version": str(version or "none")},
        description=None if missing == 0 else "materialize image_predictions and current_predictions",
    )
