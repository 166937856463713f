"""Daily metrics of the production version's predictions, which show drift."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.image_files import IMAGE_KEYS
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
from image_assets.models.version_ids import identify_rows, key_of, of_version
from image_assets.predictions.embedding_distances import embedding_distances
from image_assets.schemas import IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS, PREDICTION_DRIFT
from resources.delta.delta_log import table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.queries import querying
from resources.delta.unchanged import describe_once
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

if TYPE_CHECKING:
    import duckdb

EMBEDDED_DAYS = 7  # per materialization, at most
MIN_DAYS, MIN_IMAGES_PER_DAY = 5, 20  # days to compare with, and images in each of them
MIN_JUMP = 0.05  # of metrics between 0 and 1; smaller changes are not worth a warning
DEVIATIONS = 3.0
FIGURES = {
    "mean_probability": "mean probability",
    "unsure_share": "share of predictions with low confidence",
    "answer_distance": "distance of the predictions from those on the test split",
    "embedding_distance": "distance of the images from the training images",
}
ANSWER_COLUMNS = ["label", "probability", "probabilities", "most_probable_label"]
# The day each image arrived: for the first image of a file the day the file was first seen, and for an image that
# replaced another one under the same name the day of its first prediction, by any version.
ARRIVALS = """
    WITH images AS (
        SELECT path, image_id, min(predicted_at) AS predicted_at,
            row_number() OVER (PARTITION BY path ORDER BY min(predicted_at), image_id) AS number
        FROM predicted GROUP BY path, image_id
    )
    SELECT path, image_id, (CASE WHEN number > 1 THEN predicted_at ELSE first_seen END AT TIME ZONE 'UTC')::DATE AS day
    FROM images JOIN files USING (path)
"""
# What a version would have answered counts, too: thresholds do not change what it sees.
ANSWERS = """
    SELECT given.* REPLACE (coalesce(label, most_probable_label) AS label), day, is_test IS NOT NULL AS is_test
    FROM given JOIN arrived USING (path, image_id)
    LEFT JOIN (SELECT *, true AS is_test FROM tested) USING (path, image_id)
"""
COUNTS = """
    SELECT day, label, count(*) AS images, count(*) FILTER (probability::DOUBLE < $threshold::DOUBLE) AS low_confidence,
        sum(probability::DOUBLE) AS total
    FROM answers GROUP BY day, label
"""
MEANS = """
    WITH each AS (
        SELECT {by} AS name, unnest(probabilities) AS probability, generate_subscripts(probabilities, 1) AS place
        FROM answers WHERE label IS NOT NULL AND {where}
    ),
    means AS (SELECT name, place, avg(probability::DOUBLE) AS mean FROM each GROUP BY name, place)
    SELECT name, list(mean ORDER BY place) FROM means GROUP BY name
"""


def days_to_embed(days: Iterable[date], measured: pd.DataFrame, now: datetime) -> list[date]:
    """The last days that are over, so that no more images can arrive, and that were not measured since."""
    tried = {row["day"] for row in measured.to_dict("records") if row["measured_at"].date() > row["day"]}
    return [day for day in sorted(day for day in days if day < now.date())[-EMBEDDED_DAYS:] if day not in tried]


def figures_by_day(
    connection: "duckdb.DuckDBPyConnection", labels: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """Metrics of each day's predictions, as columns of prediction_drift; None where there are no predictions.

    Args:
        connection: Has the relation `answers`: day, label, probability, probabilities, and whether the image `is_test`.
        labels: The labels of the version.
        threshold: Predictions with a lower probability have low confidence.
    """
    counts: dict[date, list[LabelCount]] = defaultdict(list)
    for day, *row in connection.execute(COUNTS, {"threshold": threshold}).fetchall():
        counts[day].append(LabelCount(*row))
    means = dict(connection.execute(MEANS.format(by="day", where="true")).fetchall())
    reference = connection.execute(MEANS.format(by="NULL", where="is_test")).fetchall()
    return [
        {
            "day": day,
            "threshold": threshold,
            "answer_distance": answer_distance(means.get(day), reference[0][1] if reference else None),
            **figures(counts[day], labels),
        }
        for day in sorted(counts)
    ]


class LabelCount(NamedTuple):
    """For one label and day: its predictions, those with low confidence, and the sum of their probabilities."""

    label: str | None  # None for images without a prediction
    images: int
    low_confidence: int
    total: float | None


def figures(counts: Sequence[LabelCount], labels: Sequence[str]) -> dict[str, Any]:
    """Metrics of one day's predictions; None where there are no predictions."""
    given = {count.label: count for count in counts if count.label is not None}
    all_labels = [*labels, *sorted(set(given) - set(labels))]
    answered = sum(count.images for count in given.values())
    shares = [given[label].images / answered if label in given else 0.0 for label in all_labels]
    return {
        "images": sum(count.images for count in counts),
        "answered": answered,
        "labels": all_labels,
        "label_shares": shares if answered else None,
        "mean_probability": sum(count.total or 0.0 for count in given.values()) / answered if answered else None,
        "unsure_share": sum(count.low_confidence for count in given.values()) / answered if answered else None,
    }


def answer_distance(these: Sequence[float] | None, others: Sequence[float] | None) -> float | None:
    """The distance between two sets of predictions by their mean probability of each label; None if one is empty.

    The Jensen-Shannon distance (Endres and Schindelin 2003, "A new metric for probability distributions"): 0 if they
    are equal, 1 if they have no label in common.
    """
    from scipy.special import rel_entr

    if these is None or others is None:
        return None
    means = np.stack([these, others])
    divergence = rel_entr(means, means.mean(axis=0)).sum() / 2 / np.log(2)
    return float(np.sqrt(max(divergence, 0.0)))  # rounding can make it negative for equal sets


def shares_by_day(days: pd.DataFrame) -> pd.DataFrame:
    """One column per label with its share on each day; 0 where the day does not have the label."""
    pairs = zip(days["labels"], days["label_shares"], strict=True)
    return pd.DataFrame([dict(zip(*pair, strict=True)) for pair in pairs], index=days.index).fillna(0.0)


def by_figure(days: pd.DataFrame) -> pd.DataFrame:
    """One column per metric and per label, one row per day; all values are between 0 and 1."""
    figures = pd.DataFrame({name: days[column].astype(float) for column, name in FIGURES.items()})
    return pd.concat([shares_by_day(days).add_prefix("share of "), figures], axis="columns")


def jumps(days: pd.DataFrame) -> list[str] | None:
    """Describes the metrics of a version that jumped on its newest day; None if there are too few days to compare.

    A metric jumps if it differs from its mean on the earlier days by more than three standard deviations. The
    deviation is that of the earlier days or, if larger, the sampling error of as few images as the newest day has.
    """
    enough = days.loc[days["answered"] >= MIN_IMAGES_PER_DAY].sort_values("day")
    if len(enough) <= MIN_DAYS:
        return None
    measured = by_figure(enough)
    return [
        sentence
        for name in measured.columns.tolist()
        if (sentence := jump(name, measured.loc[:, name].dropna(), enough))
    ]


def jump(name: str, values: pd.Series, days: pd.DataFrame) -> str | None:
    """Describes the jump of a metric on the newest day; None if it did not jump, or if there are too few days."""
    if len(values) <= MIN_DAYS:
        return None
    before, newest = values.iloc[:-1].to_numpy(np.float64), float(values.iloc[-1])
    newest_day = days.loc[values.index[-1]]
    mean = before.mean()
    chance = mean * (1 - mean) / newest_day["answered"]  # of a share; no metric between 0 and 1 varies more
    expected = np.sqrt(max(before.var(ddof=1), chance) * (1 + 1 / len(before)))
    if abs(newest - mean) <= max(DEVIATIONS * expected, MIN_JUMP):
        return None
    wanted = f"expected {mean:.2f} ± {expected:.2f}, the mean of the {len(before)} days before"
    return f"{name} was {newest:.2f} on {newest_day['day']}: {wanted}"


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
    """Which predictions have low confidence, and how many images are embedded."""

    threshold: float = Field(
        default=0.6, gt=0, le=1, description="Predictions with a lower probability have low confidence."
    )
    embedded_images: int = Field(
        default=256,
        ge=0,
        description="How many images of each day, and of the training split, are embedded; 0 turns this off.",
    )


@contextmanager
def answers_by_day(delta_tables: DeltaTables, version: ModelVersion) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A connection with `arrived`, the day of each predicted image, and `answers`, the version's predictions."""
    with querying(
        predicted=delta_tables.batches(IMAGE_PREDICTIONS, [*IMAGE_KEYS, "predicted_at"]),
        files=delta_tables.batches(IMAGE_FILES, ["path", "first_seen"]),
        given=delta_tables.batches(IMAGE_PREDICTIONS, [*IMAGE_KEYS, *ANSWER_COLUMNS], of_version(version)),
        tested=delta_tables.batches(IMAGE_SPLITS, IMAGE_KEYS, pc.field("split") == "test"),
    ) as connection:
        connection.execute(f"CREATE TABLE arrived AS {ARRIVALS}")
        connection.execute(f"CREATE TABLE answers AS {ANSWERS}")
        yield connection


def measure(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, config: DriftConfig, now: datetime
) -> str | None:
    """Merges the current metrics of every day into the table.

    Returns:
        Why the images could not be embedded; None if they could.
    """
    identify_rows(delta_tables, [version], PREDICTION_DRIFT)
    recorded = read_days(delta_tables, version)
    with answers_by_day(delta_tables, version) as connection:
        measured = figures_by_day(connection, version.labels, config.threshold)
        all_days = [row["day"] for row in measured]
        days = days_to_embed(all_days, recorded, now) if config.embedded_images else []
        images = (
            connection.execute(
                "SELECT path, image_id, day FROM answers WHERE list_contains($days, day)", {"days": days}
            ).df()
            if days
            else None
        )
    if not measured:
        return None
    embedded = recorded.loc[recorded["embedding_distance"].notna()]
    distances, fault = dict(zip(embedded["day"], embedded["embedding_distance"], strict=True)), None
    if images is not None:
        images = images.assign(day=images["day"].dt.date)
        found = embedding_distances(delta_tables, registry, version, images, config.embedded_images)
        if isinstance(found, ItemFailure):
            fault = f"{found.reason}: {found.message}"
        else:
            distances |= found
    key = {**key_of(version), "measured_at": now}
    rows = [{**row, **key, "embedding_distance": distances.get(row["day"])} for row in measured]
    table = pa.Table.from_pylist(rows, to_arrow_schema(PREDICTION_DRIFT.columns))
    table = table.filter(pa.array(is_new(table, version, delta_tables)))
    if table.num_rows:
        delta_tables.merge(table, PREDICTION_DRIFT, updates={name: f"new.{name}" for name in table.column_names})
        delta_tables.compact_without_spark(PREDICTION_DRIFT)
    return fault


def is_new(measured: pa.Table, version: ModelVersion, delta_tables: DeltaTables) -> list[bool]:
    """For each measured day of a version, whether its metrics differ from those in the table."""
    figures = [name for name in measured.column_names if name != "measured_at"]
    rows = delta_tables.read(PREDICTION_DRIFT, figures, of_version(version)).to_pylist()
    recorded = {row["day"]: row for row in rows}
    return [row != recorded.get(row["day"]) for row in measured.select(figures).to_pylist()]


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


@dg.asset(
    deps=["image_predictions", "image_embeddings", "image_files", "image_splits"],
    kinds={"deltalake"},
    pool="prediction_drift",
)
def prediction_drift(
    config: DriftConfig, delta_tables: DeltaTables, model_registry: ModelRegistry
) -> dg.MaterializeResult:
    """Daily label shares and confidence of the production version, for the images that arrived on each day."""
    before = delta_tables.snapshot(PREDICTION_DRIFT)
    serving = model_registry.serving()
    fault = measure(delta_tables, model_registry, serving, config, datetime.now(UTC)) if serving else None
    after = delta_tables.snapshot(PREDICTION_DRIFT)
    charts = describe_once(
        delta_tables,
        PREDICTION_DRIFT.name,
        lambda: drift_metadata(read_days(delta_tables, serving)) if serving else {},
        tables=[PREDICTION_DRIFT],
        values=[serving and key_of(serving)],
    )
    return dg.MaterializeResult(
        metadata={
            "rows_added": after.rows - before.rows,
            **table_metadata(PREDICTION_DRIFT, delta_tables.uri(PREDICTION_DRIFT), after),
            "serving_version": str(serving.version) if serving else "none",
            **({"embedding_fault": fault} if fault else {}),
            **charts,
        }
    )
