"""Daily metrics of the production version's predictions, which show drift."""

from datetime import UTC, datetime

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.images.charts import (
    COLORS,
    DOTS_PER_INCH,
    NAMED_BARS,
    SHOWN_BARS,
    picture_markdown,
    stacked_bars,
    to_png,
)
from image_assets.images.isolated_process import ItemFailure
from image_assets.predictions.drift_figures import (
    IMAGE_KEYS,
    arrival_days,
    days_to_embed,
    embedding_distances,
    figures_by_day,
    shares_by_day,
)
from image_assets.predictions.image_predictions import key_of, of_version
from image_assets.schemas import IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS, PREDICTION_DRIFT
from resources.delta.delta_log import table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

ANSWER_COLUMNS = ["label", "probability", "probabilities"]


def label_shares(days: pd.DataFrame) -> bytes:
    """A chart of each label's share per day, stacked, as PNG; rare labels are grouped as others."""
    return stacked_bars(shares_by_day(days).set_axis(day_names(days)), "share of each label", top=1)


def day_names(days: pd.DataFrame) -> list[str]:
    """The days as labels of a chart."""
    return [f"{day:%d %b}" for day in days["day"]]


def confidence(days: pd.DataFrame) -> bytes:
    """A chart of daily confidence, and of the distance from the test split and the training images, as PNG."""
    from matplotlib.figure import Figure

    shown = days.tail(SHOWN_BARS)
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    lines = {"mean_probability": COLORS[""], "unsure_share": COLORS["validation_"], "answer_distance": "#2ca02c"}
    lines["embedding_distance"] = "#9467bd"
    for name, color in lines.items():
        axes.plot(range(len(shown)), shown[name].astype(float), "o-", color=color, markersize=4, label=name)
    axes.set(title="confidence", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    step = -(-len(shown) // NAMED_BARS)
    axes.set_xticks(range(0, len(shown), step), day_names(shown)[::step])
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


class DriftConfig(dg.Config):
    """Which predictions count as unsure, and how many images are embedded."""

    threshold: float = Field(
        default=0.6, gt=0, le=1, description="Predictions with a lower probability count as unsure."
    )
    embedded_images: int = Field(
        default=256,
        ge=0,
        description="How many images of each day, and of the training split, are embedded; 0 turns this off.",
    )


def answers_by_day(delta_tables: DeltaTables, version: ModelVersion) -> pd.DataFrame:
    """The version's predictions, each with the day its image arrived."""
    predicted = delta_tables.read(IMAGE_PREDICTIONS, [*IMAGE_KEYS, "predicted_at"]).to_pandas()
    files = delta_tables.read(IMAGE_FILES, ["path", "first_seen"]).to_pandas()
    answers = delta_tables.read(IMAGE_PREDICTIONS, [*IMAGE_KEYS, *ANSWER_COLUMNS], of_version(version)).to_pandas()
    return answers.merge(arrival_days(predicted, files), on=IMAGE_KEYS)


def measure(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, config: DriftConfig, now: datetime
) -> str | None:
    """Merges the current metrics of every day into the table.

    Returns:
        Why the images could not be embedded; None if they could.
    """
    answers = answers_by_day(delta_tables, version)
    if answers.empty:
        return None
    tested = delta_tables.read(IMAGE_SPLITS, IMAGE_KEYS, pc.field("split") == "test").to_pandas()
    measured = figures_by_day(answers, answers.merge(tested, on=IMAGE_KEYS), version.labels, config.threshold)
    recorded = read_days(delta_tables, version)
    embedded = recorded.loc[recorded["embedding_distance"].notna()]
    distances, fault = dict(zip(embedded["day"], embedded["embedding_distance"], strict=True)), None
    days = days_to_embed(answers["day"].unique(), recorded, now) if config.embedded_images else []
    if days:
        images = answers.loc[answers["day"].isin(days)]
        found = embedding_distances(delta_tables, registry, version, images, config.embedded_images)
        if isinstance(found, ItemFailure):
            fault = f"{found.reason}: {found.message}"
        else:
            distances |= found
    key = {**key_of(version), "measured_at": now}
    rows = [{**row, **key, "embedding_distance": distances.get(row["day"])} for row in measured]
    table = pa.Table.from_pylist(rows, to_arrow_schema(PREDICTION_DRIFT.columns))
    table = table.filter(pa.array(is_new(table, delta_tables)))
    if table.num_rows:
        delta_tables.merge(table, PREDICTION_DRIFT, updates={name: f"new.{name}" for name in table.column_names})
        delta_tables.compact_without_spark(PREDICTION_DRIFT)
    return fault


def is_new(measured: pa.Table, delta_tables: DeltaTables) -> list[bool]:
    """For each measured day, whether its metrics differ from those in the table."""
    figures = [name for name in measured.column_names if name != "measured_at"]
    recorded = delta_tables.read(PREDICTION_DRIFT, figures).to_pylist()
    return [row not in recorded for row in measured.select(figures).to_pylist()]


def read_days(delta_tables: DeltaTables, version: ModelVersion) -> pd.DataFrame:
    """The days on which the version predicted images, oldest first."""
    answered = of_version(version) & (pc.field("answered") > 0)
    rows = delta_tables.read(PREDICTION_DRIFT, PREDICTION_DRIFT.columns.fieldNames(), answered)
    return rows.to_pandas(timestamp_as_object=True).sort_values("day", ignore_index=True)


def drift_metadata(days: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """Charts of labels and confidence per day, as metadata."""
    if days.empty:
        return {}
    pictures = {"label_shares": label_shares(days), "confidence": confidence(days)}
    return {
        name: dg.MetadataValue.md(picture_markdown(picture, f"{name}, per day")) for name, picture in pictures.items()
    }


@dg.asset(deps=["image_predictions", "image_files", "image_splits"], kinds={"deltalake"}, pool="prediction_drift")
def prediction_drift(
    config: DriftConfig, delta_tables: DeltaTables, model_registry: ModelRegistry
) -> dg.MaterializeResult:
    """Daily label shares and confidence of the production version, for the images that arrived on each day."""
    before = delta_tables.snapshot(PREDICTION_DRIFT)
    serving = model_registry.serving()
    fault = measure(delta_tables, model_registry, serving, config, datetime.now(UTC)) if serving else None
    after = delta_tables.snapshot(PREDICTION_DRIFT)
    return dg.MaterializeResult(
        metadata={
            "rows_added": after.rows - before.rows,
            **table_metadata(PREDICTION_DRIFT, delta_tables.uri(PREDICTION_DRIFT), after),
            "serving_version": str(serving.version) if serving else "none",
            **({"embedding_fault": fault} if fault else {}),
            **(drift_metadata(read_days(delta_tables, serving)) if serving else {}),
        }
    )
