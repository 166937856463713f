"""How a model version answers for a batch of images, the same for evaluation and prediction."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from image_assets.models.frameworks import gpu_program
from image_assets.models.isolated_scoring import LoadableVersion, guarded_predictions
from image_assets.schemas import IMAGE_PREDICTIONS
from resources.devices import Device, InferenceDevice
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

# Without the columns' comments: Spark takes a column with a comment for another type than Python's answer.
ANSWER_FIELDS = tuple(
    StructField(name, IMAGE_PREDICTIONS.columns[name].dataType) for name in ("label", "probability", "probabilities")
)
FAULT_FIELD = StructField("fault", IMAGE_PREDICTIONS.columns["fault"].dataType)
# What MLflow itself reads in a worker that loads a version: not all workers have the driver's environment.
ACCOUNT_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SUM_TOLERANCE = 1e-3  # of the probabilities, which are float32, of a few labels
UNREADABLE = "unreadable: the version could not read the image"
NO_DISTRIBUTION = "no_distribution: expected a finite probability for each label"


def resolve_device(version: ModelVersion, on: InferenceDevice, spark: SparkSession) -> Device:
    """The device on which a version computes; a ValueError if `cuda` was chosen and there is no GPU."""
    framework = version.tags.get("framework", "")
    return on.resolve(spark, framework, gpu_program(framework))


def score_images(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """The images, without their content, with the version's label, probability and probabilities, or else a fault.

    The images are spread over as many tasks as run at once: a table's few files would keep one core busy.
    """
    with separate_workers(images.sparkSession, version.tags.get("framework", "")):
        answer = registry.scoring_udf(images.sparkSession, version, StructType([*ANSWER_FIELDS]), device)(
            F.struct("content", "path")
        )
    answered = repartitioned(images).withColumn("answer", answer)
    # MLflow turns a null text of a struct into the text "None"; numbers stay null.
    return with_valid_predictions(answered.drop("content").select("*", "answer.*").drop("answer"), version)


def score_images_guarded(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """The same, slower: where the version raises, hangs or crashes, one image has a fault and all others an answer."""
    loadable_version = LoadableVersion(registry.tracking_uri, version.uri, device)
    rows = StructType([*(field for field in images.schema if field.name != "content"), *ANSWER_FIELDS, FAULT_FIELD])
    with separate_workers(images.sparkSession, version.tags.get("framework", "")):
        answered = repartitioned(images).mapInPandas(partial(guarded_predictions, loadable_version), rows)
    return with_valid_predictions(answered, version)


def repartitioned(images: DataFrame) -> DataFrame:
    """The images in as many tasks as run at once."""
    return images.repartition(images.sparkSession.sparkContext.defaultParallelism)


def with_valid_predictions(answered: DataFrame, version: ModelVersion) -> DataFrame:
    """Answers that are none become nulls, and `fault` says why."""
    given, sound = F.col("probability").isNotNull() | F.col("probabilities").isNotNull(), is_valid_prediction(version)
    known_fault = F.col("fault") if "fault" in answered.columns else F.lit(None).cast("string")
    fault = F.when(sound, None).otherwise(
        F.coalesce(known_fault, F.when(given, F.lit(NO_DISTRIBUTION)).otherwise(F.lit(UNREADABLE)))
    )
    return answered.withColumns(
        {field.name: F.when(sound, F.col(field.name)) for field in ANSWER_FIELDS} | {"fault": fault}
    )


def is_valid_prediction(version: ModelVersion) -> Column:
    """Whether an answer has a finite probability, and one for each label that the version tells apart."""
    finite = F.col("probability").isNotNull() & ~F.isnan("probability")
    finite &= F.coalesce(F.forall("probabilities", lambda each: ~F.isnan(each)), F.lit(False))
    return finite & (F.size("probabilities") == len(version.labels)) if version.labels else finite


@contextmanager
def separate_workers(spark: SparkSession, framework: str) -> Iterator[None]:
    """Functions made in the block run in Python workers of their own for each framework.

    Spark reuses workers, and a process that loads both frameworks crashes; it keeps workers apart by
    the environment that a function was made with. It travels with the function and is in none of Spark's settings,
    so that it may hold MLflow's account.
    """
    environment = spark.sparkContext.environment
    before = dict(environment)
    environment.update({"IMAGE_ASSETS_FRAMEWORK": framework, "TF_CPP_MIN_LOG_LEVEL": "3"})
    environment.update({name: os.environ[name] for name in ACCOUNT_VARIABLES if name in os.environ})
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)
