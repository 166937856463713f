"""Scores images with a model version; evaluation and prediction share this code."""

import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from image_assets.models.frameworks import gpu_program
from image_assets.models.isolated_scoring import (
    LATER_COLUMNS,
    NO_PICKLES,
    REQUIRED_COLUMNS,
    LoadableVersion,
    guarded_predictions,
)
from image_assets.schemas import IMAGE_PREDICTIONS
from resources.delta.arrow_rows import Row, bounded
from resources.delta.spark_session import DeltaSpark
from resources.devices import Device, InferenceDevice
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion

# Without the comments of the columns, because Spark compares the metadata of types with those returned by Python.
ANSWER_FIELDS = tuple(
    StructField(name, IMAGE_PREDICTIONS.columns[name].dataType) for name in (*REQUIRED_COLUMNS, *LATER_COLUMNS)
)
FAULT_FIELD = StructField("fault", IMAGE_PREDICTIONS.columns["fault"].dataType)
# MLflow reads these in the workers that load a version, and not all workers inherit the driver's environment.
ACCOUNT_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SUM_TOLERANCE = 1e-3  # probabilities are float32
IMAGES_PER_TASK = 128  # at least if there are more tasks than cores
UNREADABLE = "unreadable: the version could not read the image"
NO_DISTRIBUTION = "no_distribution: expected a finite probability for each label"


def resolve_device(version: ModelVersion, on: InferenceDevice, pyspark: DeltaSpark) -> Device:
    """The device on which a version computes; a ValueError if `cuda` was chosen and there is no GPU."""
    framework = version.tags.get("framework", "")
    return on.resolve(pyspark, framework, gpu_program(framework))


def score_images(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """Replaces the content of images with the version's answers, ANSWER_FIELDS, or with a fault.

    `images` needs enough partitions to keep all cores busy; the few files of a table would use only one. Each
    executor loads the version and calls `predict` of `image_classifier.py`, as stored beside the version.
    """
    returned = [*REQUIRED_COLUMNS, *(name for name in LATER_COLUMNS if name in registry.columns(version))]
    fields = StructType([field for field in ANSWER_FIELDS if field.name in returned])
    with separate_workers(images.sparkSession, version.tags.get("framework", "")):
        answer = registry.scoring_udf(images.sparkSession, version, fields, device)(F.struct("content", "path"))
    answered = images.withColumn("answer", answer)
    # MLflow turns null strings of a struct into "None"; numbers stay null.
    return with_valid_predictions(answered.drop("content").select("*", "answer.*").drop("answer"), version)


def score_images_guarded(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """Like `score_images`, but slower: images on which the version raises, hangs or crashes get a fault each."""
    loadable_version = LoadableVersion(registry.tracking_uri, version.uri, device)
    rows = StructType([*(field for field in images.schema if field.name != "content"), *ANSWER_FIELDS, FAULT_FIELD])
    with separate_workers(images.sparkSession, version.tags.get("framework", "")):
        answered = images.mapInPandas(partial(guarded_predictions, loadable_version), rows)
    return with_valid_predictions(answered, version)


def predicted_rows(images: Iterable[Row], registry: ModelRegistry, version: ModelVersion, device: str) -> Iterator[Row]:
    """Like `score_images_guarded`, for rows in this process: path and image_id with the version's answer or a fault.

    Raises:
        VersionNotLoaded: The version cannot be loaded.
    """
    digest = version.tags.get(FILES_DIGEST, "")
    loadable_version = LoadableVersion(registry.tracking_uri, version.uri, device, digest)
    for answers in guarded_predictions(loadable_version, map(pd.DataFrame, bounded(images))):
        for answer in answers.to_dict("records"):
            yield {str(name): value for name, value in answer.items()} | to_valid_prediction(answer, version)


def scored_rows(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> pd.DataFrame:
    """The rows of `score_images`.

    Raises:
        VersionNotLoaded: The version cannot be loaded.
    """
    try:
        return score_images(images, registry, version, device).toPandas()
    except (PySparkException, Py4JJavaError):
        # Spark's error does not say whether the version is to blame, or an outage; loading it here does.
        list(predicted_rows([{"path": "", "content": b""}], registry, version, "cpu"))
        raise


def to_number(value: object) -> float:
    """A version's number; not a number if it is anything else."""
    return float(value) if isinstance(value, numbers.Real) else math.nan


def plain(value: object) -> Any:
    """A version's text, number or truth value; None if it is null or anything else."""
    return value if isinstance(value, str | numbers.Real | np.bool_) and value == value else None  # noqa: PLR0124 - nan


def to_valid_prediction(answer: Mapping[Any, Any], version: ModelVersion) -> Row:
    """The same as `with_valid_predictions`, for one answer of `guarded_predictions`."""
    probabilities = answer["probabilities"]
    probability = to_number(answer["probability"])
    listed = isinstance(probabilities, Sequence | np.ndarray) and not isinstance(probabilities, str)
    distribution = [to_number(each) for each in probabilities] if listed else [math.nan]
    label = plain(answer["label"])
    sound = not any(map(math.isnan, [probability, *distribution])) and isinstance(label, str | None)
    if sound and (not version.labels or len(distribution) == len(version.labels)):
        later = {name: plain(answer[name]) for name in LATER_COLUMNS}
        label = None if later["abstained"] else label
        return {
            "label": label,
            "probability": probability,
            "probabilities": distribution,
            **later,
            "most_probable_label": later["most_probable_label"] or label,
            "fault": None,
        }
    given = plain(answer["probability"]) is not None or probabilities is not None
    fault = answer["fault"] or (NO_DISTRIBUTION if given else UNREADABLE)
    return {**dict.fromkeys((*REQUIRED_COLUMNS, *LATER_COLUMNS)), "fault": fault}


def with_valid_predictions(answered: DataFrame, version: ModelVersion) -> DataFrame:
    """Replaces invalid predictions with nulls and records the reason in `fault`."""
    given, sound = F.col("probability").isNotNull() | F.col("probabilities").isNotNull(), is_valid_prediction(version)
    known_fault = F.col("fault") if "fault" in answered.columns else F.lit(None).cast("string")
    fault = F.when(sound, None).otherwise(
        F.coalesce(known_fault, F.when(given, F.lit(NO_DISTRIBUTION)).otherwise(F.lit(UNREADABLE)))
    )
    missing = {field.name: F.lit(None).cast(field.dataType) for field in ANSWER_FIELDS}
    answered = answered.withColumns({name: of for name, of in missing.items() if name not in answered.columns})
    label = F.when(~F.coalesce("abstained", F.lit(False)), F.col("label"))
    answers = {field.name: F.col(field.name) for field in ANSWER_FIELDS}
    answers |= {"label": label, "most_probable_label": F.coalesce("most_probable_label", label)}
    distance = F.col("distance_from_training")
    answers["distance_from_training"] = F.when(~F.isnan(distance), distance)
    answers["unlike_training"] = F.when(distance.isNotNull() & ~F.isnan(distance), F.col("unlike_training"))
    return answered.withColumns({name: F.when(sound, of) for name, of in answers.items()} | {"fault": fault})


def is_valid_prediction(version: ModelVersion) -> Column:
    """Whether a prediction has a finite probability for every label of the version."""
    finite = F.col("probability").isNotNull() & ~F.isnan("probability")
    finite &= F.coalesce(F.forall("probabilities", lambda each: ~F.isnan(each)), F.lit(False))
    return finite & (F.size("probabilities") == len(version.labels)) if version.labels else finite


@contextmanager
def separate_workers(spark: SparkSession, framework: str) -> Iterator[None]:
    """UDFs created in this block run in Python workers that serve only this framework.

    Spark reuses workers, and a process that loads both frameworks crashes. Spark separates workers by the environment
    in which a UDF was created. That environment is not part of Spark's settings, so it may contain MLflow's account.
    """
    environment = spark.sparkContext.environment
    before = dict(environment)
    environment.update({"IMAGE_ASSETS_FRAMEWORK": framework, "TF_CPP_MIN_LOG_LEVEL": "3", **NO_PICKLES})
    environment.update({name: os.environ[name] for name in ACCOUNT_VARIABLES if name in os.environ})
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)
