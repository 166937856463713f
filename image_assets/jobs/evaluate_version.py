"""Evaluates a version on images outside the splits, such as your own test set, as they are and corrupted."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, model_validator

from image_assets.data.folder_layout import FolderLayout, advice, to_given_splits
from image_assets.data.given_labels import GIVEN, label_rows, read_given
from image_assets.data.image_splits import split_digest
from image_assets.images.charts import confusion_matrix, picture_markdown
from image_assets.images.corruptions import CORRUPTIONS, Corruption, corrupted_png
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits, with_scaled_contents
from image_assets.images.pixels import Reading
from image_assets.jobs.launchpad_examples import with_example
from image_assets.models.evaluation import Evaluation, evaluate, mark_right
from image_assets.models.evaluation_report import (
    ARTIFACT_FOLDER,
    accuracy_by_corruption,
    precision_and_recall,
    reliability_diagram,
    results_table,
)
from image_assets.models.lineage import image_side, reading_of
from image_assets.models.model_evaluations import damage_of, evaluation_row, merge_evaluations
from image_assets.models.scoring import UNREADABLE, predicted_rows, resolve_device
from image_assets.models.version_ids import of_version
from image_assets.schemas import IMAGE_SPLITS, MODEL_EVALUATIONS
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.devices import InferenceDevice
from resources.files.file_system import is_url, open_file
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

LISTED = 20  # files in metadata
NO_LABEL = "no label"

Predict = Callable[[Iterable[Row]], Iterator[Row]]  # rows with content in, rows with the version's answers out


class EvaluateConfig(dg.Config):
    """Which version to evaluate, on which images."""

    model_config = ConfigDict(allow_inf_nan=False)

    version: int | None = Field(default=None, gt=0, description="The model version. Default: the serving version.")
    folder: str | None = Field(
        default=None,
        description="A folder, or a URL, with the images of each label in a subfolder, read by the same rules as the "
        "landing folder. With a table, its paths are relative to this folder; by default to the table's.",
    )
    table: str | None = Field(
        default=None,
        description="A table of paths and labels: a file (CSV, JSON, Parquet, …) or a Delta table, as for "
        "IMAGE_ASSETS_LABELS.",
    )
    path_column: str = Field(default="", description="The column with the paths. Default: one of the usual names.")
    label_column: str = Field(default="", description="The column with the labels. Default: one of the usual names.")
    dataset: str | None = Field(
        default=None,
        pattern=r"^\w[\w .-]*$",
        max_length=100,
        description="The name of the images in model_evaluations. Default: that of the folder or table.",
    )
    blur: list[float] = Field(
        default=[], description="Evaluate on blurred images, too: standard deviations in pixels of the network's input."
    )
    noise: list[float] = Field(default=[], description="… on noisy images: standard deviations, in values up to 255.")
    darkness: list[float] = Field(default=[], description="… on dark images: shares of the brightness to take away.")
    rotation: list[float] = Field(default=[], description="… on rotated images: degrees, counterclockwise.")

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> "EvaluateConfig":
        if not self.folder and not self.table:
            raise ValueError("neither folder nor table is set: name the images to evaluate the version on")
        for name, most in {"blur": 1000, "noise": 1000, "darkness": 1}.items():
            if wrong := [level for level in getattr(self, name) if not 0 < level <= most]:
                raise ValueError(f"{name} is {wrong[0]:g}: expected more than 0, up to {most}")
        return self

    @property
    def corruptions(self) -> list[Corruption]:
        """The chosen corruptions, each level once, ascending."""
        return [Corruption(kind, level) for kind in CORRUPTIONS for level in sorted({*getattr(self, kind)})]

    @property
    def root(self) -> str:
        """The folder of the images: an absolute path without links, or a URL."""
        folder = self.folder or str(self.table).rstrip("/").removeprefix("file://").rpartition("/")[0] or "."
        return folder if is_url(folder) else os.path.realpath(Path(folder).expanduser())

    @property
    def name(self) -> str:
        """What model_evaluations calls the images."""
        return self.dataset or Path((self.table or self.root).rstrip("/")).name


@dataclass
class LabeledImages:
    """The labels of image files by table path, and the files that have none, with the reason."""

    labels: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def labeled_images(config: EvaluateConfig, landing: ImageFolder) -> LabeledImages:
    """The images to evaluate on; the landing folder's settings say which files count, and which folder is the label.

    Raises:
        ValueError: There are no labeled images.
    """
    folder = landing.model_copy(update={"root": config.root})
    try:
        paths = sorted(folder.list_names().names)
    except FolderUnavailable as error:
        raise ValueError(f"{config.root} cannot be listed: {error.__cause__}; set `folder` to another one") from error
    splits = to_given_splits(paths, folder.path, folder.split_folders, frozenset())
    layout = FolderLayout(folder.path, folder.label_level, folder.merge_labels, splits)
    if config.table:
        table = ExternalTable(source=config.table, path_column=config.path_column, label_column=config.label_column)
        found = table.read_all()
        given = read_given(
            label_rows(found, table, folder.path, ("path_column", "label_column")),
            folder.path,
            {*paths},
            found.problems,
        )
        images = LabeledImages(
            {path: layout.merge(of.label) for path, of in given.items() if of.state == GIVEN and of.label},
            {path or config.table: of.message or of.state for path, of in given.items() if of.state != GIVEN},
        )
    else:
        labels = {path: layout.label(path) for path in paths}
        images = LabeledImages(
            {path: label for path, label in labels.items() if label},
            {path: NO_LABEL for path, label in labels.items() if not label},
        )
    if not images.labels:
        why = "; ".join(advice(paths, layout)) if paths and not config.table else f"{len(paths):,} image files found"
        raise ValueError(f"{config.table or config.root} has no labeled images: {why}")
    return images


def read_images(labels: Mapping[str, str], landing: ImageFolder, unreadable: dict[str, str]) -> Iterator[Row]:
    """A row with the content of each file, null if it is above the content limit; others are added to `unreadable`."""
    for path, label in labels.items():
        try:
            with open_file(path, landing.real_link_roots) as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(0)
                content = file.read() if length <= landing.content_limit_bytes else None
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own, such as for credentials
            unreadable[path] = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
            continue
        # A file above the limit is identified by its path: reading all of it would take longer than predicting.
        image_id = sha256(path.encode() if content is None else content).hexdigest()
        yield {"path": path, "image_id": image_id, "true_label": label, "length": length, "content": content}


def corrupted_rows(
    images: Iterable[Row], corruption: Corruption, side_pixels: int, reading: Reading, unreadable: dict[str, str]
) -> Iterator[Row]:
    """The rows with corrupted images, made in a guarded process, because the files may be hostile."""
    limits = Limits()
    corrupted = partial(corrupted_png, corruption=corruption, side_pixels=side_pixels, reading=reading)
    with GuardedProcess(corrupted, memory_bytes=limits.memory_bytes) as guarded:
        for image in images:
            content = image["content"]
            made = guarded.run(content, cpu_seconds=limits.seconds_for(len(content))) if content else None
            if made is None or isinstance(made, ItemFailure):
                unreadable[image["path"]] = f"{made.reason}: {made.message}" if made else UNREADABLE
            else:
                yield {**image, "content": made}


@dataclass(frozen=True)
class ExternalEvaluation:
    """The evaluation of a version on a data set: as it is (None) and with each corruption."""

    results: dict[Corruption | None, Evaluation]
    answers: pd.DataFrame  # of the images as they are, marked
    unreadable: dict[str, str]  # why, by path
    unknown: Counter[str]  # images by label, of labels that the version does not have


def evaluate_on(
    version: ModelVersion,
    images: LabeledImages,
    corruptions: Iterable[Corruption],
    landing: ImageFolder,
    predict: Predict,
) -> ExternalEvaluation:
    """Evaluates a version on images whose label it has.

    Raises:
        ValueError: The version has none of the labels, or no image can be read.
    """
    known = {path: label for path, label in images.labels.items() if label in version.labels}
    unknown = Counter(label for label in images.labels.values() if label not in version.labels)
    if not known:
        raise ValueError(
            f"version {version.version} has none of the labels {', '.join(sorted(unknown))}: its labels are "
            f"{', '.join(version.labels)}"
        )
    unreadable: dict[str, str] = {}
    reading = reading_of(version)
    results: dict[Corruption | None, Evaluation] = {}
    whole = pd.DataFrame()
    for corruption in (None, *corruptions):
        readable = {path: label for path, label in known.items() if path not in unreadable}
        rows = with_scaled_contents(read_images(readable, landing, unreadable), reading)
        if corruption:
            rows = corrupted_rows(rows, corruption, image_side(version), reading, unreadable)
        found = pd.DataFrame(predict(rows))
        if not corruption and not found.empty:
            failed = found.loc[found["fault"] == UNREADABLE]
            unreadable |= dict.fromkeys(failed["path"], UNREADABLE)
            found = found.drop(index=failed.index).reset_index(drop=True)
        if found.empty:
            why = Counter(unreadable.values()).most_common(1)
            raise ValueError(f"none of the {len(known):,} images can be read: {why[0][0] if why else 'no files'}")
        marked = mark_right(found)
        results[corruption] = evaluate(marked, version.labels)
        whole = marked if corruption is None else whole
    return ExternalEvaluation(results, whole, unreadable, unknown)


def learned_from(image_ids: Iterable[str], delta_tables: DeltaTables) -> int:
    """How many of the images are in the training or validation split, so that a version may know their labels."""
    learned = pc.field("split").isin(["training", "validation"])
    known = {*delta_tables.read(IMAGE_SPLITS, ["image_id"], learned)["image_id"].to_pylist()}
    return sum(image_id in known for image_id in image_ids)


def to_pictures(found: ExternalEvaluation) -> dict[str, bytes]:
    """The pictures of an evaluation by file name."""
    evaluation = found.results[None]
    pictures = {
        "confusion_matrix.png": confusion_matrix(evaluation.confusion_matrix, evaluation.labels),
        "precision_and_recall.png": precision_and_recall(evaluation),
        "reliability_diagram.png": reliability_diagram(found.answers),
    }
    if len(found.results) > 1:
        pictures["accuracy_by_corruption.png"] = accuracy_by_corruption(found.results)
    return pictures


def counts_table(counts: Mapping[str, int], name: str) -> dg.TableMetadataValue:
    """Counts as metadata, the largest first."""
    rows = sorted(counts.items(), key=lambda row: -row[1])[:LISTED]
    return dg.MetadataValue.table([dg.TableRecord({name: value, "images": images}) for value, images in rows])


def files_table(reasons: Mapping[str, str]) -> dg.TableMetadataValue:
    """The first files and their reasons, as metadata."""
    return dg.MetadataValue.table(
        [dg.TableRecord({"path": path, "reason": reason}) for path, reason in [*reasons.items()][:LISTED]]
    )


def to_metadata(found: ExternalEvaluation, images: LabeledImages, title: str) -> dict[str, dg.MetadataValue]:
    """What the run reports."""
    result = found.results[None]
    metadata = {
        "images": dg.MetadataValue.int(result.images),
        "accuracy": dg.MetadataValue.float(result.accuracy),
        "results": results_table(found.results),
        "unreadable": dg.MetadataValue.int(len(found.unreadable)),
        "with_unknown_label": dg.MetadataValue.int(found.unknown.total()),
        "left_out": dg.MetadataValue.int(len(images.left_out)),
    }
    if found.unreadable:
        metadata["unreadable_files"] = files_table(found.unreadable)
    if found.unknown:
        metadata["unknown_labels"] = counts_table(found.unknown, "label")
    if images.left_out:
        metadata["left_out_files"] = files_table(images.left_out)
    for name, picture in to_pictures(found).items():
        metadata[Path(name).stem] = dg.MetadataValue.md(picture_markdown(picture, title))
    return metadata


def chosen_version(number: int | None, registry: ModelRegistry) -> ModelVersion:
    """The version with the number, or the serving version; a ValueError if it is missing, damaged or has no labels."""
    version = registry.serving() if number is None else registry.version(number)
    if version is None:
        raise ValueError("no version is in production: set `version`")
    if damage := damage_of(version, registry):
        raise ValueError(damage)
    if not version.labels:
        raise ValueError(f"version {version.version} has no tag `labels`: evaluate versions that were trained here")
    return version


@dg.op(pool="model_evaluations")
def evaluate_on_images(
    context: dg.OpExecutionContext,
    config: EvaluateConfig,
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    model_registry: ModelRegistry,
    mlflow_tracking: MlflowTracking,
    inference_device: InferenceDevice,
) -> None:
    """Evaluates a version; the results are in model_evaluations, in the run's metadata and in MLflow."""
    from mlflow.exceptions import MlflowException

    version = chosen_version(config.version, model_registry)
    images = labeled_images(config, image_folder)
    device = resolve_device(version, inference_device, delta_tables.pyspark).name
    predict = partial(predicted_rows, registry=model_registry, version=version, device=device)
    found = evaluate_on(version, images, config.corruptions, image_folder, predict)
    digest = split_digest(found.answers.assign(label=found.answers["true_label"]))
    rows = [
        evaluation_row(version, evaluation, digest)
        | {
            "split": "",
            "dataset": config.name,
            "corruption": str(corruption or ""),
            "unreadable": len(found.unreadable),
            "with_unknown_label": found.unknown.total(),
        }
        for corruption, evaluation in found.results.items()
    ]
    same_name = of_version(version) & (pc.field("dataset") == config.name) & (pc.field("rows_digest") != digest)
    if delta_tables.read(MODEL_EVALUATIONS, ["rows_digest"], same_name).num_rows:
        context.log.warning(
            f"the results replace those on other images that were also called {config.name!r}: to keep both, set "
            "`dataset` to a name of their own and evaluate again"
        )
    merge_evaluations(delta_tables, rows)
    title = f"version {version.version} on {config.name}, accuracy {found.results[None].accuracy:.3f}"
    metadata = to_metadata(found, images, title)
    if learned := learned_from(found.answers["image_id"], delta_tables):
        metadata["in_training_or_validation"] = dg.MetadataValue.int(learned)
        context.log.warning(
            f"{learned:,} of {len(found.answers):,} images are also in the training or validation split, so the "
            "figures may be too good: leave them out, and evaluate again"
        )
    try:
        folder = f"{ARTIFACT_FOLDER}/{config.name}"
        mlflow_tracking.log_to(version.mlflow_run_id, folder, {}, to_pictures(found))
    except (MlflowException, OSError) as error:
        metadata["not_logged"] = dg.MetadataValue.text(f"MLflow could not log the pictures: {error}")
    context.log_event(dg.AssetObservation("model_evaluations", metadata=metadata))
    context.add_output_metadata({"model_version": version.version, "dataset": config.name, **metadata})


@dg.job(
    description=with_example(
        "evaluate_version", "Evaluate a model version on a folder or table of your own, also on corrupted images."
    )
)
def evaluate_version() -> None:
    """Evaluates one version."""
    evaluate_on_images()
