"""Predictions of the production version for the current files.

A newly promoted version takes over once it has predicted. Until then, or if it fails, the table keeps the predictions
of the previous version.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from image_assets.data.image_files import IMAGE_KEYS, current_files
from image_assets.data.inspection import CURRENT
from image_assets.data.new_images_sheet import SHEET_IMAGES
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails
from image_assets.models.version_ids import key_of
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, IMAGE_PREDICTIONS, PREDICTED_FIRST
from resources.delta.delta_log import last_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import rows_run_locally
from resources.delta.following import is_of
from resources.delta.merging import LISTED_KEYS, rows_with
from resources.delta.queries import query
from resources.delta.unchanged import describe_once
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry


def of_current_files(predictions: DataFrame, files: DataFrame, key: Mapping[str, object] | None) -> DataFrame:
    """The predictions of the version with this key for the current content of files in state `current`."""
    current = current_files(files)
    return predictions.where(has_key(key)).join(current, on=["path", "image_id"], how="inner")


def read_of_current_files(
    delta_tables: DeltaTables, key: Mapping[str, object] | None, paths: pa.Array | None = None
) -> pa.Table:
    """The same rows, read without Spark, or those with these paths, sorted."""
    version = is_of(key) if key else pc.scalar(False)
    is_current = pc.field("state") == CURRENT
    if paths is not None:
        version, is_current = version & rows_with("path", paths), is_current & rows_with("path", paths)
    return query(
        "SELECT predictions.* FROM predictions SEMI JOIN current USING (path, image_id) ORDER BY path",
        predictions=delta_tables.batches(IMAGE_PREDICTIONS, CURRENT_PREDICTIONS.columns.fieldNames(), version),
        current=delta_tables.batches(IMAGE_FILES, IMAGE_KEYS, is_current),
    )


def changed_paths(delta_tables: DeltaTables, key: Mapping[str, object] | None) -> pa.Array | None:
    """The sorted paths of the files whose row is missing, outdated or superfluous; None if every row may be."""
    version = is_of(key) if key else pc.scalar(False)
    shown = delta_tables.read(CURRENT_PREDICTIONS, ["predicted_at"], version).num_rows
    if not shown or shown != delta_tables.snapshot(CURRENT_PREDICTIONS).rows:
        return None
    columns = [*IMAGE_KEYS, "predicted_at"]
    changed = query(
        "WITH expected AS (SELECT *, true AS is_expected FROM predictions SEMI JOIN current USING (path, image_id)) "
        "SELECT DISTINCT path FROM expected FULL JOIN (SELECT *, true AS is_shown FROM shown) "
        "USING (path, image_id, predicted_at) WHERE is_expected IS NULL OR is_shown IS NULL ORDER BY path",
        predictions=delta_tables.batches(IMAGE_PREDICTIONS, columns, version),
        current=delta_tables.batches(IMAGE_FILES, IMAGE_KEYS, pc.field("state") == CURRENT),
        shown=delta_tables.batches(CURRENT_PREDICTIONS, columns, version),
    )["path"]
    return changed.combine_chunks() if len(changed) <= LISTED_KEYS else None


def update(delta_tables: DeltaTables, key: Mapping[str, object] | None, note: str) -> None:
    """Bring the rows up to date, in one commit with a note: those that changed, or all if many did."""
    paths = changed_paths(delta_tables, key)
    if paths is not None:
        if len(paths):
            rows = read_of_current_files(delta_tables, key, paths)
            delta_tables.replace_rows(rows, CURRENT_PREDICTIONS, paths, note=note)
            delta_tables.compact(CURRENT_PREDICTIONS)
    elif rows_run_locally(delta_tables.pyspark, delta_tables.snapshot(IMAGE_PREDICTIONS).rows):
        delta_tables.overwrite_rows(read_of_current_files(delta_tables, key), CURRENT_PREDICTIONS, note=note)
    else:
        predictions, files = delta_tables.dataframe(IMAGE_PREDICTIONS), delta_tables.dataframe(IMAGE_FILES)
        delta_tables.overwrite(of_current_files(predictions, files, key), CURRENT_PREDICTIONS, note=note)


def has_key(key: Mapping[str, object] | None) -> Column:
    """Selects a version's rows; None selects none."""
    return reduce(and_, (F.col(name) == F.lit(value) for name, value in (key or {}).items()), F.lit(key is not None))


def version_to_show(instance: dg.DagsterInstance, registry: ModelRegistry) -> Mapping[str, object] | None:
    """The key of the production version of the last run of image_predictions, whatever was promoted since; or None."""
    metadata = last_metadata(instance, "image_predictions")
    number, version_id = metadata.get("serving_version"), metadata.get("serving_version_id")
    if number == "none":
        return None
    # Otherwise another Dagster instance or an earlier release wrote the table, or its events were deleted.
    if number is None or version_id is None:
        serving = registry.serving()
        return key_of(serving) if serving else None
    return {"model_name": registry.name, "model_version": int(str(number)), "version_id": version_id}


def least_certain_metadata(delta_tables: DeltaTables, link_roots: Sequence[str]) -> dict[str, dg.MetadataValue]:
    """A contact sheet of the predictions with the lowest probabilities, as metadata."""
    columns = ["path", "label", "probability", "abstained", "most_probable_label"]
    predictions = delta_tables.batches(CURRENT_PREDICTIONS, columns)
    least_certain = query(
        "SELECT path, coalesce(probability, 0) AS probability, CASE WHEN abstained "
        "THEN 'abstained: perhaps ' || most_probable_label ELSE coalesce(label, 'no prediction') END AS label "
        "FROM predictions "
        f"ORDER BY predictions.probability NULLS FIRST, path LIMIT {SHEET_IMAGES}",
        predictions=predictions,
    ).to_pylist()
    captions = [f"{row['label']} {row['probability']:.0%}" for row in least_certain]
    images = thumbnails(((row["path"], None) for row in least_certain), link_roots)
    tiles = list(zip(images, captions, strict=True))
    if not tiles:
        return {}
    return {
        "least_certain": dg.MetadataValue.md(picture_markdown(contact_sheet(tiles), "the least certain predictions"))
    }


@dg.asset(
    deps=["image_predictions", "image_files"],
    kinds={"pyspark", "deltalake"},
    pool="current_predictions",
    op_tags=PREDICTED_FIRST,
)
def current_predictions(
    context: dg.AssetExecutionContext,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    image_folder: ImageFolder,
) -> dg.MaterializeResult:
    """Label and probability predicted by the production version, for each current file in the landing folder."""
    before = delta_tables.snapshot(CURRENT_PREDICTIONS)
    key = version_to_show(context.instance, model_registry)
    version = key and key["model_version"]
    sources = [delta_tables.last_change(table) for table in (IMAGE_PREDICTIONS, IMAGE_FILES)]
    made_of = f"{model_registry.name} version {version}, image_predictions@v{sources[0]}, image_files@v{sources[1]}"
    made_of += f", {key['version_id']}" if key else ""
    if delta_tables.last_note(CURRENT_PREDICTIONS) != made_of:
        update(delta_tables, key, made_of)
    change = delta_tables.change_since(before, CURRENT_PREDICTIONS)
    described = describe_once(
        delta_tables,
        CURRENT_PREDICTIONS.name,
        lambda: least_certain_metadata(delta_tables, image_folder.real_link_roots),
        tables=[CURRENT_PREDICTIONS, IMAGE_FILES],  # pictures are read from the files
    )
    return delta_tables.materialized(
        CURRENT_PREDICTIONS,
        change,
        serving_version=str(version or "none"),
        made_of=made_of,
        **described,
    )
