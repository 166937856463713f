"""Predictions of the production version for the current files.

A newly promoted version takes over once it has predicted. Until then, or if it fails, the table keeps the predictions
of the previous version.
"""

import dagster as dg
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.image_files import current_files
from image_assets.data.new_images_sheet import SHEET_IMAGES
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.delta.delta_log import last_metadata
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry


def of_current_files(predictions: DataFrame, files: DataFrame, model_name: str, version: int | None) -> DataFrame:
    """The version's predictions for the current content of files in state `current`."""
    current = current_files(files)
    of_version = (F.col("model_name") == model_name) & (F.col("model_version") == F.lit(version))
    return predictions.where(of_version).join(current, on=["path", "image_id"], how="inner")


def version_to_show(instance: dg.DagsterInstance, registry: ModelRegistry) -> int | None:
    """The production version of the last run of image_predictions, whatever was promoted since; None if none."""
    recorded = last_metadata(instance, "image_predictions").get("serving_version")
    if recorded is None:  # another Dagster instance wrote the table, or its events were deleted
        serving = registry.serving()
        return serving.version if serving else None
    return None if recorded == "none" else int(str(recorded))


def least_certain_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """A contact sheet of the predictions with the lowest probabilities, as metadata."""
    least_certain = (
        delta_tables.dataframe(CURRENT_PREDICTIONS).orderBy("probability", "path").limit(SHEET_IMAGES).collect()
    )
    captions = [f"{row['label'] or 'no prediction'} {row['probability'] or 0:.0%}" for row in least_certain]
    images = thumbnails((row["path"], None) for row in least_certain)
    tiles = list(zip(images, captions, strict=True))
    if not tiles:
        return {}
    return {
        "least_certain": dg.MetadataValue.md(picture_markdown(contact_sheet(tiles), "the least certain predictions"))
    }


@dg.asset(deps=["image_predictions", "image_files"], kinds={"pyspark", "deltalake"}, pool="current_predictions")
def current_predictions(
    context: dg.AssetExecutionContext, delta_tables: DeltaTables, model_registry: ModelRegistry
) -> dg.MaterializeResult:
    """Label and probability predicted by the production version, for each current file in the landing folder."""
    before = delta_tables.snapshot(CURRENT_PREDICTIONS)
    version = version_to_show(context.instance, model_registry)
    predictions, files = delta_tables.dataframe(IMAGE_PREDICTIONS), delta_tables.dataframe(IMAGE_FILES)
    sources = [delta_tables.last_change(table) for table in (IMAGE_PREDICTIONS, IMAGE_FILES)]
    made_of = f"{model_registry.name} version {version}, image_predictions@v{sources[0]}, image_files@v{sources[1]}"
    if delta_tables.last_note(CURRENT_PREDICTIONS) != made_of:
        rows = of_current_files(predictions, files, model_registry.name, version)
        delta_tables.overwrite(rows, CURRENT_PREDICTIONS, note=made_of)
    change = delta_tables.change_since(before, CURRENT_PREDICTIONS)
    return delta_tables.materialized(
        CURRENT_PREDICTIONS,
        change,
        serving_version=str(version or "none"),
        made_of=made_of,
        **least_certain_metadata(delta_tables),
    )
