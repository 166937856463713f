"""A leaderboard of backbones: a head on each, trained, calibrated and tried on the same splits."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, field_validator
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.image_splits import read_split, split_digest, training_labels
from image_assets.data.sound_splits import require_sound_splits
from image_assets.data.training_cache import find_or_write_cache
from image_assets.images.charts import DOTS_PER_INCH, picture_markdown, to_png
from image_assets.models.backbone_trials import Trial, try_backbone
from image_assets.models.backbone_weights import backbones_at_hand, require_packages
from image_assets.models.backbones import (
    BACKBONES,
    is_external,
    names_of_backbones,
    require_supported,
    to_backbone,
)
from image_assets.models.evaluation import calibration_error, interval
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.training import weights_identity
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_plan import OutputLocations
from image_assets.schemas import BACKBONE_COMPARISONS
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.pictures import with_picture_files
from resources.processes.ranks import RankFailure
from resources.training import BackboneWeights, TrainingProcesses

SPLITS = ("training", "validation", "test")
MEGABYTE = 1e6
SHOWN = {  # columns of the leaderboard: their titles, and how their values are written
    "backbone": ("backbone", "{}"),
    "framework": ("framework", "{}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "accuracy_low": ("from", "{:.3f}"),
    "accuracy_high": ("to", "{:.3f}"),
    "validation_accuracy": ("validation", "{:.3f}"),
    "calibration_error": ("calibration error", "{:.3f}"),
    "training_seconds": ("training s", "{:.0f}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "megabytes": ("MB", "{:.0f}"),
    "weights": ("weights", "{}"),
    "error": ("error", "{}"),
}
MAX_ERROR_LENGTH = 1000

Row = dict[str, Any]  # of backbone_comparisons: its columns are of many types


class ComparisonConfig(dg.Config):
    """Which backbones to compare."""

    backbones: list[str] = Field(
        default=[],
        description="Their names, as in the training setting `backbone`; by default those whose weights are at "
        "hand: in the folder that IMAGE_ASSETS_BACKBONE names, in an installed package, or downloaded before.",
    )
    frameworks: list[str] = Field(default=[*FRAMEWORKS], description="The frameworks to train heads in.")

    @field_validator("backbones")
    @classmethod
    def _exist(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in BACKBONES and not is_external(name):
                raise ValueError(f"backbones has {name!r}: expected {names_of_backbones()}")
        return names

    @field_validator("frameworks")
    @classmethod
    def _are_here(cls, names: list[str]) -> list[str]:
        if not names or set(names) - set(FRAMEWORKS):
            raise ValueError(f"frameworks is {names}: expected some of {', '.join(FRAMEWORKS)}")
        return names


@dataclass(frozen=True)
class ComparisonResources:
    """The resources of a comparison."""

    delta_tables: DeltaTables
    caches: PetastormCaches
    processes: TrainingProcesses
    backbone: BackboneWeights


def to_compare(config: ComparisonConfig, source: str) -> list[tuple[str, str]]:
    """Backbones and frameworks, without those of named backbones that another of the frameworks has."""
    pairs = []
    for framework in config.frameworks:
        names = config.backbones or backbones_at_hand(framework, source)
        pairs += [(name, framework) for name in names]
    offered = [(name, framework) for name, framework in pairs if framework in frameworks_of(name)]
    lacking = {name for name, _ in pairs} - {name for name, _ in offered}
    return offered + [pair for pair in pairs if pair[0] in lacking]


def frameworks_of(name: str) -> list[str]:
    """The frameworks that have the backbone."""
    found = []
    for framework in FRAMEWORKS:
        try:
            require_supported(name, framework)
        except ValueError:
            continue
        found.append(framework)
    return found


def compare_one(name: str, framework: str, resources: ComparisonResources) -> Row:
    """The backbone's figures, or why it has none: the columns of its row besides those of the whole comparison."""
    started = time.monotonic()
    try:
        require_supported(name, framework)
        backbone = to_backbone(name)
        require_packages(backbone, framework)
        weights_identity(backbone, framework, resources.backbone)
        figures = to_figures(trial_of(name, framework, resources))
        sizes = {"side_pixels": backbone.side_pixels, "features": backbone.features}
    except (RankFailure, ImportError, OSError, ValueError) as error:
        dg.get_dagster_logger().warning(f"{name} in {framework}: {error}")
        figures, sizes = {"error": " ".join(str(error).split())[:MAX_ERROR_LENGTH]}, {}
    dg.get_dagster_logger().info(f"compared {name} in {framework} in {time.monotonic() - started:.0f} s")
    return {"backbone": name, "framework": framework, **sizes, **figures}


def trial_of(name: str, framework: str, resources: ComparisonResources) -> list[Trial]:
    """What the ranks found, with embeddings of this comparison only: their time is part of the result."""
    tables, processes = resources.delta_tables, resources.processes
    caches = resources.caches.model_copy(update={"side_pixels": to_backbone(name).side_pixels})
    # Untrained weights instead of missing ones would not be a result.
    source = "imagenet" if resources.backbone.source == "auto" else resources.backbone.source
    plan = TrainingConfig(backbone=name).plan(len(training_labels(tables)), source, caches)
    with ExitStack() as stack:
        started = processes.started(tables.pyspark, plan.distributor, FRAMEWORKS[framework].rank_imports)
        run = stack.enter_context(started)
        folder = stack.enter_context(scratch_folder(caches))
        found = [find_or_write_cache(tables, caches, split, ranks=processes.processes)[0] for split in SPLITS]
        for cache in found:
            stack.enter_context(cache.in_use())
        converters = tuple(cache.converter() for cache in found)
        locations = OutputLocations("", "", (), f"{folder}/checkpoints")
        return run(try_backbone, framework, converters, plan, locations)


@contextmanager
def scratch_folder(caches: PetastormCaches) -> Iterator[str]:
    """A hidden folder next to the caches, which all ranks reach; deleted afterwards."""
    Path(caches.root).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=caches.root, prefix=".comparison-") as folder:
        yield folder


def to_figures(trials: Sequence[Trial]) -> Row:
    """The figures of a backbone, from the trials of all ranks."""
    first = trials[0]
    answers = pd.DataFrame(
        {
            "probability": first.probabilities.max(axis=1),
            "right": first.probabilities.argmax(axis=1) == first.label_indexes,
        }
    )
    right = int(answers["right"].sum())
    images = len(first.label_indexes)
    low, high = interval(right, images)
    return {
        "weights": first.origin,
        "images": images,
        "accuracy": right / images,
        "accuracy_low": low,
        "accuracy_high": high,
        "validation_accuracy": first.validation_accuracy,
        "calibration_error": calibration_error(answers),
        "training_seconds": max(trial.training_seconds for trial in trials),
        "images_per_second": sum(trial.images_per_second for trial in trials),
        "megabytes": first.weight_bytes / MEGABYTE,
    }


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows by validation accuracy, the best first, those with an error last.

    Not by accuracy on the test split: whoever picks the best of several by a figure gets too high a figure.
    """
    return sorted(rows, key=lambda row: (-row.get("validation_accuracy", -1.0), row["backbone"], row["framework"]))


def leaderboard_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    titles = [title for title, _ in SHOWN.values()]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        cells = [form.format(row[name]) if row.get(name) is not None else "" for name, (_, form) in SHOWN.items()]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def leaderboard_picture(rows: Sequence[Row]) -> bytes:
    """PNG of accuracy with its interval over images per second; the size of a point is that of the weights."""
    from matplotlib.figure import Figure

    measured = [row for row in rows if "accuracy" in row]
    figure = Figure(figsize=(8, 4.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for number, framework in enumerate(sorted({row["framework"] for row in measured})):
        color = f"C{number}"
        of = [row for row in measured if row["framework"] == framework]
        speeds, shares, sizes = (
            np.array([row[name] for row in of]) for name in ("images_per_second", "accuracy", "megabytes")
        )
        lengths = np.abs([[row[bound] - row["accuracy"] for row in of] for bound in ("accuracy_low", "accuracy_high")])
        axes.errorbar(speeds, shares, yerr=lengths, fmt="none", capsize=3, linewidth=1, ecolor=color)
        axes.scatter(speeds, shares, s=20 + 4 * sizes, color=color, alpha=0.6, label=FRAMEWORKS[framework].title)
        for row in of:
            axes.annotate(
                f"{row['backbone']}, {row['megabytes']:.0f} MB",
                (row["images_per_second"], row["accuracy"]),
                textcoords="offset points",
                xytext=(7, 5),
                fontsize=8,
                parse_math=False,
            )
    axes.set(xlabel="images per second, decoded and embedded", ylabel="accuracy on the test split, 95 % interval")
    # Room for the names, which are to the right of their points.
    axes.set_xlim(0, 1.4 * max(row["images_per_second"] for row in measured))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return to_png(figure)


def comparison(
    config: ComparisonConfig, resources: ComparisonResources, dagster_run_id: str
) -> tuple[list[Row], Mapping[str, dg.MetadataValue]]:
    """Compares the backbones and writes their rows; the ranked rows, and metadata with table and picture.

    Raises:
        ValueError: Every backbone failed; the rows with the reasons are written anyway.
    """
    tables = resources.delta_tables
    require_sound_splits(tables)
    tables.create(BACKBONE_COMPARISONS)
    whole = {
        "dagster_run_id": dagster_run_id,
        "rows_digest": split_digest(read_split(tables, "test")),
        "training_images": len(read_split(tables, "training")),
    }
    rows = []
    for name, framework in to_compare(config, resources.backbone.source):
        row = {**compare_one(name, framework, resources), **whole, "compared_at": datetime.now(UTC)}
        # Each at once: a comparison that is terminated keeps what it found.
        found = pa.Table.from_pylist([row], to_arrow_schema(BACKBONE_COMPARISONS.columns))
        others = [name for name in found.column_names if name not in BACKBONE_COMPARISONS.keys]
        tables.merge(found, BACKBONE_COMPARISONS, updates={name: f"new.{name}" for name in others})
        rows.append(row)
    rows = ranked(rows)
    if all("error" in row for row in rows):
        reasons = "; ".join(f"{row['backbone']} in {row['framework']}: {row['error']}" for row in rows)
        raise ValueError(f"no backbone could be compared. {reasons}")
    return rows, {
        "leaderboard": dg.MetadataValue.md(leaderboard_markdown(rows)),
        "accuracy_and_speed": dg.MetadataValue.md(
            picture_markdown(leaderboard_picture(rows), "accuracy and speed of the backbones")
        ),
    }


@dg.asset(
    deps=["training_cache", "validation_cache"],
    kinds={"pyspark", "deltalake", "horovod", "petastorm"},
    pool="backbone_comparisons",
)
def backbone_comparisons(
    context: dg.AssetExecutionContext,
    config: ComparisonConfig,
    delta_tables: DeltaTables,
    petastorm_caches: PetastormCaches,
    training_processes: TrainingProcesses,
    backbone: BackboneWeights,
) -> dg.MaterializeResult:
    """Accuracy, calibration, speed and size of a head on each backbone; no version is registered."""
    resources = ComparisonResources(delta_tables, petastorm_caches, training_processes, backbone)
    delta_tables.create(BACKBONE_COMPARISONS)
    before = delta_tables.snapshot(BACKBONE_COMPARISONS)
    rows, metadata = comparison(config, resources, context.run.run_id)
    best = rows[0]
    return delta_tables.materialized(
        BACKBONE_COMPARISONS,
        delta_tables.change_since(before, BACKBONE_COMPARISONS),
        best=f"{best['backbone']} in {best['framework']}",
        failed=sum("error" in row for row in rows),
        **with_picture_files(metadata, delta_tables.picture_home),
    )
