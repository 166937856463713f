"""The common recipe's predictions: `spark_udf` over the paths of a Delta table, written to Delta."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlflow
from pyspark.sql import Column

from benchmarks.predicting import RECIPE_MODEL, predict_twice
from benchmarks.recipe import delta_session, rebuild, start_workers
from benchmarks.task import read_task, timed

RESULT = "struct<label: string, probability: double, probabilities: array<double>>"


def main() -> None:
    """Predict with the model in stage Production, or first rebuild all tables (`whole_path`)."""
    task = read_task()
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    spark = delta_session()
    start_workers(spark)

    def write_predictions(featured: Path, target: Path) -> None:
        model = f"models:/{RECIPE_MODEL.format(task.kernel)}/Production"
        # MLflow annotates the inner function instead.
        answer = cast("Callable[[str], Column]", mlflow.pyfunc.spark_udf(spark, model, result_type=RESULT))
        images = spark.read.format("delta").load(str(featured)).select("path")
        predictions = images.withColumn("prediction", answer("path")).select("path", "prediction.*")
        predictions.write.format("delta").mode("overwrite").save(str(target))

    if task.benchmark == "whole_path":
        with timed():
            rebuild(spark, task.source, task.target)
            write_predictions(Path(task.target, "featured"), Path(task.target, "predictions"))
    else:
        predict_twice(task, lambda home, target: write_predictions(home / "tables" / "featured_images", target))
    spark.stop()


if __name__ == "__main__":
    main()
