"""How a model version answers for a batch of images, the same for evaluation and prediction."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from image_assets.schemas import IMAGE_PREDICTIONS
from resources.model_registry import ModelRegistry, ModelVersion

# Without the columns' comments: Spark takes a column with a comment for another type than Python's answer.
ANSWER = StructType(
    [StructField(name, IMAGE_PREDICTIONS.columns[name].dataType) for name in ("label", "probability", "probabilities")]
)


def with_answers(images: DataFrame, registry: ModelRegistry, version: ModelVersion, device: str) -> DataFrame:
    """The images, without their content, with the version's label, probability and probabilities.

    The images are spread over as many tasks as run at once: a table's few files would keep one core busy.
    """
    spark = images.sparkSession
    with own_workers(spark, version.tags.get("framework", "")):
        answer = registry.scoring_udf(spark, version, ANSWER, device)(F.struct("content", "path"))
    answered = images.repartition(spark.sparkContext.defaultParallelism).withColumn("answer", answer)
    answered = answered.drop("content").select("*", "answer.*").drop("answer")
    # MLflow turns a null text of a struct into the text "None"; numbers stay null.
    return answered.withColumn("label", F.when(F.col("probability").isNotNull(), F.col("label")))


@contextmanager
def own_workers(spark: SparkSession, framework: str) -> Iterator[None]:
    """Functions made in the block run in Python workers of their own for each framework.

    Spark reuses workers, and a process that loads both frameworks crashes; it keeps workers apart by
    the environment that a function was made with.
    """
    environment = spark.sparkContext.environment
    before = dict(environment)
    environment.update({"IMAGE_ASSETS_FRAMEWORK": framework, "TF_CPP_MIN_LOG_LEVEL": "3"})
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)
