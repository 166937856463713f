"""Metrics of every model version on the test split, which no version is trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.image_files import IMAGE_KEYS
from image_assets.data.image_splits import labels_in_all_splits, read_split, split_digest
from image_assets.images.charts import confusion_matrix
from image_assets.images.large_images import with_scaled_content, with_scaled_contents
from image_assets.images.pixels import Reading
from image_assets.models.evaluation import (
    Comparison,
    Evaluation,
    answers_by_label,
    compare,
    evaluate,
    mark_right,
    with_traits,
    worst_slices,
)
from image_assets.models.evaluation_report import (
    ARTIFACT_FOLDER,
    PICTURES,
    Metadata,
    Report,
    earlier_pictures,
    mistakes_sheet,
    precision_and_recall,
    reliability_diagram,
)
from image_assets.models.explanations import explanations_sheet
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.isolated_scoring import VersionNotLoaded
from image_assets.models.lineage import reading_of, thresholds_of
from image_assets.models.scoring import (
    ANSWER_FIELDS,
    FAULT_FIELD,
    IMAGES_PER_TASK,
    predicted_rows,
    resolve_device,
    scored_rows,
)
from image_assets.models.stage_history import Promotion
from image_assets.models.version_descriptions import describe_versions
from image_assets.models.version_ids import identify_rows, key_of, of_version, of_versions
from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, MODEL_EVALUATIONS
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import Executor, runs_locally
from resources.delta.following import stored_rows
from resources.delta.local_tasks import counted
from resources.delta.spark_session import counting_tasks, task_count
from resources.delta.unchanged import describe_once
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking, PermissionRefused
from resources.mlflow.model_registry import (
    SERVING_STAGE,
    SHADOW_STAGE,
    DamagedVersion,
    ModelRegistry,
    ModelVersion,
    serving_version,
    shadows,
)

SPLIT = "test"
SHOWN_MISTAKES = 32
FIRST_REASONS = {
    SERVING_STAGE: "best of the first versions; none was in production",
    SHADOW_STAGE: "next best of the first versions; to be compared with the best",
}
SCORED_COLUMNS = [*IMAGE_KEYS, "length", "content"]
ANSWER_COLUMNS = [*IMAGE_KEYS, *(field.name for field in (*ANSWER_FIELDS, FAULT_FIELD))]


def to_evaluate(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The newest version of each framework, and the production version."""
    newest = {version.tags.get("framework"): version for version in versions if version.live}
    serving = serving_version(versions)
    return sorted(
        {version.version: version for version in [*newest.values(), *([serving] if serving else [])]}.values(),
        key=lambda v: v.version,
    )


def first_to_serve(accuracies: Mapping[int, float], *, serving: int | None) -> int | None:
    """The version to promote automatically: the most accurate one if none is in production, else None."""
    if serving is not None or not accuracies:
        return None
    return max(accuracies, key=accuracies.__getitem__)


def first_shadow(accuracies: Mapping[int, float], *, serving: int, staged: Iterable[int]) -> int | None:
    """The version to compare with the first serving one: the next most accurate one, unless another is in Staging."""
    others = {number: accuracy for number, accuracy in accuracies.items() if number != serving}
    return None if set(staged) - {serving} else first_to_serve(others, serving=None)


def damage_of(version: ModelVersion, registry: ModelRegistry) -> str | None:
    """Why the version's files must not be loaded; None if they may."""
    try:
        registry.require_files_as_logged(version)
    except DamagedVersion as error:
        return str(error)
    return None


def rows_to_evaluate(delta_tables: DeltaTables) -> tuple[pd.DataFrame, list[str]]:
    """The images of the test split, without labels that are left out of training, and their labels.

    All labels count as long as none is in every split.
    """
    rows = read_split(delta_tables, SPLIT)
    labels = labels_in_all_splits(delta_tables) or sorted(set(rows["label"]))
    return rows.loc[rows["label"].isin(labels)], labels


def predict_test_split(
    version: ModelVersion, delta_tables: DeltaTables, registry: ModelRegistry, on: InferenceDevice
) -> pd.DataFrame:
    """The version's predictions for the images of the test split, with their `true_label`.

    Only the URI and the tags of the version are used, so the version need not be registered.
    """
    return predict_rows(version, labeled_test_rows(delta_tables), delta_tables, registry, on)


def answers_on_test_split(
    version: ModelVersion, delta_tables: DeltaTables, registry: ModelRegistry, on: InferenceDevice
) -> pd.DataFrame:
    """The same, from the predictions in image_predictions.

    Images without one there are predicted again, because the failure may have been temporary.
    """
    rows = labeled_test_rows(delta_tables)
    columns = [*IMAGE_KEYS, *(field.name for field in ANSWER_FIELDS)]
    there = delta_tables.read(IMAGE_PREDICTIONS, columns, of_version(version) & pc.field("probability").is_valid())
    known = rows.merge(there.to_pandas(), on=IMAGE_KEYS, how="left")
    lacking = known["probability"].isna().to_numpy(bool)
    if not lacking.any():
        return known
    more = predict_rows(version, rows.loc[lacking], delta_tables, registry, on)
    return pd.concat([known.loc[~lacking], more], join="inner", ignore_index=True)


def marked_answers(
    version: ModelVersion, delta_tables: DeltaTables, registry: ModelRegistry, on: InferenceDevice
) -> pd.DataFrame | str:
    """The version's marked predictions for the test split, or why it must not or cannot be loaded."""
    try:
        registry.require_files_as_logged(version)
        return mark_right(answers_on_test_split(version, delta_tables, registry, on))
    except (DamagedVersion, VersionNotLoaded) as error:
        return str(error)


def labeled_test_rows(delta_tables: DeltaTables) -> pd.DataFrame:
    """The images of the test split that are evaluated, with their `true_label`."""
    return rows_to_evaluate(delta_tables)[0].rename(columns={"label": "true_label"})


def predict_rows(
    version: ModelVersion,
    rows: pd.DataFrame,
    delta_tables: DeltaTables,
    registry: ModelRegistry,
    on: InferenceDevice,
) -> pd.DataFrame:
    """The rows with the version's predictions for their images, which it gets as `image_predictions` does."""
    device, reading = resolve_device(version, on, delta_tables.pyspark).name, reading_of(version)
    progress = delta_tables.progress_line(f"evaluated version {version.version}", len(rows), "images of the test split")
    images = stored_rows(delta_tables, FEATURED_IMAGES, zip(rows["path"], rows["image_id"], strict=True))
    if runs_locally(delta_tables.pyspark, images.size_bytes):

        def predicted(parts: Iterable[int]) -> Iterator[Row]:
            stored = counted(row for part in parts for row in images.rows(SCORED_COLUMNS, part, 1))
            yield from predicted_rows(with_scaled_contents(stored, reading), registry, version, device)

        with progress:
            answers = Executor(None).run(predicted, [0], progress, rows=len(rows))
        answered = pd.DataFrame.from_records(answers, columns=ANSWER_COLUMNS).astype({"probability": "float64"})
        return rows.merge(answered, on=IMAGE_KEYS)
    spark = delta_tables.spark
    stored = delta_tables.dataframe(FEATURED_IMAGES).select(SCORED_COLUMNS)
    content = with_scaled_content(stored.join(F.broadcast(spark.createDataFrame(rows)), on=IMAGE_KEYS), reading)
    tasks = task_count(spark, len(rows) // IMAGES_PER_TASK)
    with progress, counting_tasks(spark, progress, rows=len(rows), tasks=tasks):
        return scored_rows(content.repartition(tasks), registry, version, device)


def most_confident_mistakes(answers: pd.DataFrame, delta_tables: DeltaTables, reading: Reading) -> pd.DataFrame:
    """The wrong predictions with the highest probability, in descending order, with the `content` of their images."""
    most_confident = answers.sort_values(by="probability", ascending=False)
    wrong = most_confident.loc[~most_confident["right"]].head(SHOWN_MISTAKES)
    images = stored_rows(delta_tables, FEATURED_IMAGES, zip(wrong["path"], wrong["image_id"], strict=True))
    shown = with_scaled_contents(images.rows(SCORED_COLUMNS, 0, 1), reading)
    contents = {row["path"]: row["content"] for row in shown}
    return wrong.assign(content=[contents[path] or b"" for path in wrong["path"]])


def report_on(
    version: ModelVersion,
    answers: pd.DataFrame,
    comparison: Comparison | None,
    delta_tables: DeltaTables,
    registry: ModelRegistry,
) -> Report:
    """The report on a version, from its predictions as marked by `mark_right`."""
    evaluation = evaluate(answers, version.labels)
    features = delta_tables.read(FEATURED_IMAGES, [*IMAGE_KEYS, "width", "height", "format"]).to_pandas()
    mistakes = most_confident_mistakes(answers, delta_tables, reading_of(version))
    contents = (
        confusion_matrix(evaluation.confusion_matrix, evaluation.labels),
        precision_and_recall(evaluation),
        reliability_diagram(answers),
        mistakes_sheet(mistakes),
        explanations_sheet(version, mistakes, registry),
    )
    pictures = dict(zip(PICTURES, contents, strict=True))
    slices = worst_slices(with_traits(answers, features))
    thresholds = thresholds_of(version)
    abstention = answers_by_label(answers, version.labels, thresholds) if thresholds else ()
    return Report(version, evaluation, slices, comparison, pictures, abstention)


def merge_evaluation(delta_tables: DeltaTables, report: Report, rows_digest: str) -> None:
    """Writes a version's metrics; they replace those on an earlier test split."""
    row = {
        **evaluation_row(report.version, report.evaluation, rows_digest),
        "slices": [asdict(one) for one in report.slices],
        **(asdict(report.comparison) if report.comparison else {}),
    }
    merge_evaluations(delta_tables, [row])


def evaluation_row(version: ModelVersion, evaluation: Evaluation, rows_digest: str) -> Row:
    """A row of model_evaluations about the test split."""
    return {
        **key_of(version),
        "split": SPLIT,
        "dataset": "",
        "corruption": "",
        "framework": version.tags.get("framework"),
        **asdict(evaluation),
        "thresholds": thresholds_of(version),
        "rows_digest": rows_digest,
        "evaluated_at": datetime.now(UTC),
    }


def merge_evaluations(delta_tables: DeltaTables, evaluations: Sequence[Row]) -> None:
    """Writes rows of model_evaluations; they replace those with the same keys."""
    rows = pa.Table.from_pylist([*evaluations], to_arrow_schema(MODEL_EVALUATIONS.columns))
    figures = {name: f"new.{name}" for name in rows.column_names if name not in MODEL_EVALUATIONS.keys}
    delta_tables.merge(rows, MODEL_EVALUATIONS, updates=figures)


def log_report(report: Report, tracking: MlflowTracking) -> Metadata:
    """Logs metrics and pictures to the version's MLflow run.

    Returns:
        Metadata with the error if MLflow fails; that does not fail the run, because the metrics are in the table and
        the pictures in the metadata.
    """
    from mlflow.exceptions import MlflowException

    try:
        tracking.log_to(report.version.mlflow_run_id, ARTIFACT_FOLDER, report.metrics, report.pictures)
    except (MlflowException, OSError) as error:
        return {
            f"not_logged_v{report.version.version}": dg.MetadataValue.text(
                f"MLflow could not log the whole report: {error}"
            )
        }
    return {}


def accuracies(delta_tables: DeltaTables, versions: Iterable[ModelVersion], rows_digest: str) -> dict[int, float]:
    """The accuracy of each version whose metrics are complete and on exactly these images."""
    same_images = (pc.field("split") == SPLIT) & (pc.field("rows_digest") == rows_digest)
    evaluated = of_versions(versions) & same_images & pc.field("balanced_accuracy").is_valid()
    rows = delta_tables.read(MODEL_EVALUATIONS, ["model_version", "accuracy"], evaluated)
    return dict(zip(rows["model_version"].to_pylist(), rows["accuracy"].to_pylist(), strict=True))


def evaluate_new(
    delta_tables: DeltaTables, registry: ModelRegistry, tracking: MlflowTracking, on: InferenceDevice
) -> tuple[dict[int, float], Metadata]:
    """Evaluates the versions that have no metrics on the current test split.

    Each is compared with the production version or, if there is none, with the most accurate earlier one, which
    predicts the test split again if needed.

    Returns:
        The accuracy of all versions by number, and metadata about those that were evaluated now, or cannot be.
    """
    delta_tables.create(MODEL_EVALUATIONS)
    rows_digest = split_digest(rows_to_evaluate(delta_tables)[0])
    registered = registry.versions()
    identify_rows(delta_tables, registered, MODEL_EVALUATIONS)
    versions = {version.version: version for version in to_evaluate(registered)}
    serving = serving_version(list(versions.values()))
    done = accuracies(delta_tables, versions.values(), rows_digest)
    answers_of = cache(lambda number: marked_answers(versions[number], delta_tables, registry, on))
    metadata: Metadata = {}
    for number in sorted(versions.keys() - done.keys()):
        if isinstance(answers := answers_of(number), str):
            metadata[f"not_evaluated_v{number}"] = dg.MetadataValue.text(answers)
            continue
        if answers.empty:
            break
        others = [*([serving.version] if serving else []), *sorted(done, key=done.__getitem__, reverse=True)]
        loaded = ((one, of) for one in others if not isinstance(of := answers_of(one), str))
        other, theirs = next(loaded, (number, answers))
        comparison = compare(answers, theirs, other) if other != number else None
        report = report_on(versions[number], answers, comparison, delta_tables, registry)
        merge_evaluation(delta_tables, report, rows_digest)
        done[number] = report.evaluation.accuracy
        metadata |= report.metadata | log_report(report, tracking)
    return dict(sorted(done.items())), metadata


def promote_first(
    accuracies: Mapping[int, float], versions: Sequence[ModelVersion], registry: ModelRegistry
) -> ModelVersion | None:
    """Lets the most accurate version serve and the next one be its shadow if none serves; the serving version, if any.

    Raises:
        PermissionRefused: The account may not promote versions.
    """
    serving = serving_version(versions)
    first = first_to_serve(accuracies, serving=serving.version if serving else None)
    if first is None:
        return serving
    shadow = first_shadow(accuracies, serving=first, staged=[one.version for one in shadows(versions)])
    # The shadow first: as long as none serves, the next run makes up for a kill in between.
    stages = {SHADOW_STAGE: shadow, SERVING_STAGE: first}
    for stage, number in stages.items():
        if number is not None:
            promotion = Promotion(stage, "model_evaluations", reason=FIRST_REASONS[stage], account=registry.account)
            serving = registry.promote(number, stage, promotion.to_tags())
    return serving


@dg.asset(
    deps=[*(framework.asset for framework in FRAMEWORKS.values()), "image_splits"],
    kinds={"pyspark", "deltalake", "mlflow"},
    pool="model_evaluations",
)
def model_evaluations(
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    mlflow_tracking: MlflowTracking,
    inference_device: InferenceDevice,
) -> dg.MaterializeResult:
    """Metrics of each model version on the test split.

    If none is in production, the best one is promoted, and the next one to Staging, where it predicts for comparison.
    """
    before = delta_tables.snapshot(MODEL_EVALUATIONS)
    figures, metadata = evaluate_new(delta_tables, model_registry, mlflow_tracking, inference_device)
    versions = model_registry.versions()
    try:
        serving = promote_first(figures, versions, model_registry)
    except PermissionRefused as refused:  # training accounts may lack the permission to promote
        serving = None
        metadata["not_promoted"] = dg.MetadataValue.text(str(refused))
    try:
        describe_versions(versions, delta_tables, model_registry, mlflow_tracking.gallery_url)
    except PermissionRefused as refused:
        metadata["not_described"] = dg.MetadataValue.text(str(refused))
    described = describe_once(
        delta_tables,
        MODEL_EVALUATIONS.name,
        lambda: (earlier_pictures(serving, mlflow_tracking, metadata) if serving else {}) | metadata,
        tables=[],
        values=[serving and key_of(serving), _plain(metadata)],
    )
    return delta_tables.materialized(
        MODEL_EVALUATIONS,
        delta_tables.change_since(before, MODEL_EVALUATIONS),
        serving_version=str(serving.version) if serving else "none",
        **{f"test_accuracy_v{version}": accuracy for version, accuracy in figures.items()},
        **described,
    )


def _plain(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {name: dg.serialize_value(value) for name, value in metadata.items()}
