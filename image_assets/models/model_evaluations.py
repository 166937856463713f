"""How good each model version is on images that it has not seen."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import dagster as dg
import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from image_assets.pictures import confusion_matrix, contact_sheet, to_markdown
from image_assets.schemas import MODEL_EVALUATIONS
from image_assets.scoring import with_answers
from image_assets.split_rows import digest, split_rows, with_content
from resources.delta_tables import DeltaTables
from resources.inference_device import InferenceDevice
from resources.model_registry import SERVING_STAGE, ModelRegistry, ModelVersion

SPLIT = "test"
Pictures = dict[str, dg.MetadataValue]
SHOWN_MISTAKES = 32


@dataclass(frozen=True)
class Evaluation:
    """The figures of one version on one set of images."""

    images: int
    accuracy: float
    labels: list[str]
    precision: list[float]
    recall: list[float]
    confusion_matrix: list[list[int]]


def evaluate(true: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> Evaluation:
    """Accuracy, per-label precision and recall, confusion matrix; no answer counts as a wrong one.

    Labels that the model does not know, and the lack of an answer, come after the model's own.
    """
    from sklearn.metrics import confusion_matrix as count
    from sklearn.metrics import precision_recall_fscore_support

    answers = [answer or "(no answer)" for answer in predicted]
    names = [*labels, *sorted({*true, *answers} - set(labels))]
    precision, recall, *_ = precision_recall_fscore_support(true, answers, labels=names, zero_division=0)  # pyright: ignore[reportArgumentType] - its stubs know only "warn"
    return Evaluation(
        images=len(answers),
        accuracy=float(np.mean(np.array(true) == np.array(answers))),
        labels=names,
        precision=np.asarray(precision).tolist(),
        recall=np.asarray(recall).tolist(),
        confusion_matrix=count(true, answers, labels=names).tolist(),
    )


def to_evaluate(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The newest version of each framework, and the one that serves."""
    newest = {version.tags.get("framework"): version for version in versions if version.stage != "Archived"}
    serving = [version for version in versions if version.stage == SERVING_STAGE]
    return sorted(
        {version.version: version for version in [*newest.values(), *serving]}.values(), key=lambda v: v.version
    )


def first_to_serve(accuracies: Mapping[int, float], *, serving: int | None) -> int | None:
    """The version to promote by itself: the most accurate one, as long as none serves; later ones are a person's."""
    if serving is not None or not accuracies:
        return None
    return max(accuracies, key=accuracies.__getitem__)


def mistakes(answers: pd.DataFrame, delta_tables: DeltaTables) -> bytes:
    """A contact sheet of the surest wrong answers: what it was taken for, and what it is."""
    surest_first = answers.sort_values("probability", ascending=False)
    wrong = surest_first[surest_first["true_label"] != surest_first["label"]]
    wrong = wrong.head(SHOWN_MISTAKES)
    keys = delta_tables.spark.createDataFrame(wrong[["path", "image_id"]].astype(str), "path string, image_id string")
    contents = {row["path"]: bytes(row["content"]) for row in with_content(delta_tables, keys).collect()}
    tiles = [
        (contents[path], f"{f'{label} {probability:.0%}' if label else 'no answer'}, is {true_label}")
        for path, true_label, label, probability in zip(
            wrong["path"], wrong["true_label"], wrong["label"], wrong["probability"], strict=True
        )
    ]
    return contact_sheet(tiles, side_pixels=140, columns=6)


def answers_of(version: ModelVersion, delta_tables: DeltaTables, registry: ModelRegistry, device: str) -> pd.DataFrame:
    """What the version says of every image of the test split, beside its true label."""
    images = with_content(delta_tables, split_rows(delta_tables, SPLIT)).withColumnRenamed("label", "true_label")
    return with_answers(images, registry, version, device).toPandas()


def record(delta_tables: DeltaTables, version: ModelVersion, evaluation: Evaluation, rows_digest: str) -> None:
    """Keep a version's figures, in place of those on other images."""
    row = {
        "model_version": version.version,
        "split": SPLIT,
        "framework": version.tags["framework"],
        **asdict(evaluation),
        "rows_digest": rows_digest,
        "evaluated_at": datetime.now(UTC),
    }
    values = [row[name] for name in MODEL_EVALUATIONS.columns.fieldNames()]
    delta_tables.merge(delta_tables.spark.createDataFrame([values], MODEL_EVALUATIONS.columns), MODEL_EVALUATIONS)


def accuracies(delta_tables: DeltaTables, rows_digest: str) -> dict[int, float]:
    """The accuracy of each version that was asked about these very images."""
    rows = delta_tables.read(MODEL_EVALUATIONS).where((F.col("split") == SPLIT) & (F.col("rows_digest") == rows_digest))
    return {row["model_version"]: row["accuracy"] for row in rows.select("model_version", "accuracy").collect()}


def evaluate_new(delta_tables: DeltaTables, registry: ModelRegistry, device: str) -> tuple[dict[int, float], Pictures]:
    """Evaluate the versions that were not asked about the test split as it is: all accuracies, and new pictures."""
    rows_digest = digest(split_rows(delta_tables, SPLIT))
    versions = to_evaluate(registry.versions())
    done = accuracies(delta_tables, rows_digest)
    pictures: Pictures = {}
    for version in versions:
        if version.version in done:
            continue
        answers = answers_of(version, delta_tables, registry, device)
        if answers.empty:
            break
        evaluation = evaluate(
            answers["true_label"].tolist(), answers["label"].tolist(), json.loads(version.tags["labels"])
        )
        record(delta_tables, version, evaluation, rows_digest)
        done[version.version] = evaluation.accuracy
        title = f"version {version.version} ({version.tags['framework']}), accuracy {evaluation.accuracy:.3f}"
        matrix = confusion_matrix(evaluation.confusion_matrix, evaluation.labels)
        pictures[f"confusion_matrix_v{version.version}"] = dg.MetadataValue.md(to_markdown(matrix, title))
        sheet = mistakes(answers, delta_tables)
        pictures[f"mistakes_v{version.version}"] = dg.MetadataValue.md(to_markdown(sheet, f"mistakes of {title}"))
    return {version.version: done[version.version] for version in versions if version.version in done}, pictures


@dg.asset(
    deps=["tensorflow_model", "torch_model", "image_splits"],
    kinds={"pyspark", "deltalake", "mlflow"},
    pool="model_evaluations",
)
def model_evaluations(
    delta_tables: DeltaTables, model_registry: ModelRegistry, inference_device: InferenceDevice
) -> dg.MaterializeResult:
    """How good each model version is on the test split; the best one is promoted as long as none serves."""
    before = delta_tables.snapshot(MODEL_EVALUATIONS)
    figures, pictures = evaluate_new(delta_tables, model_registry, inference_device.resolve(delta_tables.spark))
    serving = model_registry.serving()
    promoted = first_to_serve(figures, serving=serving.version if serving else None)
    if promoted is not None:
        serving = model_registry.promote(promoted, SERVING_STAGE)
    return delta_tables.materialized(
        MODEL_EVALUATIONS,
        delta_tables.change_since(before, MODEL_EVALUATIONS),
        serving_version=str(serving.version) if serving else "none",
        **{f"test_accuracy_v{version}": accuracy for version, accuracy in figures.items()},
        **pictures,
    )
