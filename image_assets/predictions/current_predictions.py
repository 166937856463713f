"""What the serving version says of the files that are there now."""

import dagster as dg
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.contact_sheets import content_or_nothing
from image_assets.current_files import current_files
from image_assets.pictures import contact_sheet, to_markdown
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.delta_tables import DeltaTables
from resources.model_registry import ModelRegistry

SHOWN = 40


def of_current_files(predictions: DataFrame, files: DataFrame, version: int | None) -> DataFrame:
    """The version's predictions for the files in state `current`, for their content as it is."""
    current = current_files(files)
    return predictions.where(F.col("model_version") == F.lit(version)).join(
        current, on=["path", "image_id"], how="inner"
    )


def look(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """A contact sheet of the least certain predictions."""
    least_certain = delta_tables.read(CURRENT_PREDICTIONS).orderBy("probability", "path").limit(SHOWN)
    sizes = delta_tables.read(IMAGE_FILES).select("path", "length")
    shown = least_certain.join(sizes, on="path", how="inner").orderBy("probability", "path").collect()
    tiles = [
        (content_or_nothing(row["path"], row["length"]), f"{row['label'] or 'no answer'} {row['probability'] or 0:.0%}")
        for row in shown
    ]
    if not tiles:
        return {}
    return {"least_certain": dg.MetadataValue.md(to_markdown(contact_sheet(tiles), "the least certain predictions"))}


@dg.asset(deps=["image_predictions", "image_files"], kinds={"pyspark", "deltalake"}, pool="current_predictions")
def current_predictions(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.MaterializeResult:
    """Label and probability of the serving version for each file that is in the landing folder now."""
    before = delta_tables.snapshot(CURRENT_PREDICTIONS)
    serving = model_registry.serving()
    version = serving.version if serving else None
    predictions, files = delta_tables.read(IMAGE_PREDICTIONS), delta_tables.read(IMAGE_FILES)
    sources = [delta_tables.last_change(table) for table in (IMAGE_PREDICTIONS, IMAGE_FILES)]
    made_of = f"version {version}, image_predictions@v{sources[0]}, image_files@v{sources[1]}"
    if delta_tables.last_note(CURRENT_PREDICTIONS) != made_of:
        delta_tables.overwrite(of_current_files(predictions, files, version), CURRENT_PREDICTIONS, note=made_of)
    change = delta_tables.change_since(before, CURRENT_PREDICTIONS)
    return delta_tables.materialized(
        CURRENT_PREDICTIONS, change, serving_version=str(version or "none"), made_of=made_of, **look(delta_tables)
    )
