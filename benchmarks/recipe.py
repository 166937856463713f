"""The common recipe, as it is taught: no handicap, no improvement."""

import os
import sys
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.task import read_task, timed, to_pillow_gray

CODEC = "spark.sql.parquet.compression.codec"


def delta_session() -> SparkSession:
    """Spark's default settings but for Delta, the master and the driver's memory."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    logging = Path(__file__).resolve().parent.parent / "resources" / "delta" / "log4j2.properties"
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.memory": "3g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={logging}",
        "spark.ui.enabled": "false",
    }
    builder = SparkSession.Builder().master("local[2]").appName("common recipe")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def start_workers(spark: SparkSession) -> None:
    """Start the executors' Python processes, which a session does not do by itself before its first work."""
    spark.sparkContext.parallelize(range(2), 2).map(str).collect()


def write(images: DataFrame, target: str) -> None:
    """Uncompressed, as image bytes are compressed already; then compacted, which takes the restored codec."""
    spark = images.sparkSession
    codec = spark.conf.get(CODEC)
    spark.conf.set(CODEC, "uncompressed")
    images.write.format("delta").mode("overwrite").save(target)
    spark.conf.set(CODEC, str(codec))
    spark.sql(f"OPTIMIZE delta.`{target}`")


def ingest(spark: SparkSession, source: str, target: str) -> None:
    """Binary files, as Spark reads them, in a Delta table."""
    files = spark.read.format("binaryFile").option("recursiveFileLookup", True).option("pathGlobFilter", "*.jpg")
    write(files.load(source), target)


def featured(spark: SparkSession, source: str, target: str, landing: str) -> None:
    """The images with label, label index, width and height."""

    @F.udf("string")
    def to_label(path: str) -> str:
        return unquote(path).split(f"{landing}/")[1].split("/")[0]

    @F.udf("struct<width: int, height: int>")
    def to_size(content: bytes) -> tuple[int, int]:
        return Image.open(BytesIO(content)).size

    images = spark.read.format("delta").load(source).withColumn("label", to_label("path"))
    labels = sorted(row["label"] for row in images.select("label").distinct().collect())

    @F.udf("int")
    def to_index(label: str) -> int:
        return labels.index(label)

    sized = images.withColumn("label_index", to_index("label")).withColumn("size", to_size("content"))
    write(sized.select("path", "label", "label_index", "size.width", "size.height", "content"), target)


def grayscale(spark: SparkSession, source: str, target: str) -> None:
    """The images in gray, a class at a time, joined with their features again."""

    def in_gray(images: pd.DataFrame) -> pd.DataFrame:
        return images.assign(content=images["content"].map(to_pillow_gray))

    tidy = spark.read.format("delta").load(source)
    trimmed = tidy.select("path", "label", "content")
    gray = trimmed.groupBy("label").applyInPandas(in_gray, trimmed.schema)
    write(gray.join(tidy.drop("label", "content"), on="path"), target)


def main() -> None:
    """Do one step, or all of them one after the other: `whole_path`."""
    task = read_task()
    spark = delta_session()
    start_workers(spark)
    with timed():
        if task.benchmark == "ingest":
            ingest(spark, task.source, task.target)
        if task.benchmark == "featured":
            featured(spark, f"{task.source}/tables/raw_images", task.target, landing_in(task.source))
        if task.benchmark == "grayscale":
            grayscale(spark, f"{task.source}/tables/featured_images", task.target)
        if task.benchmark == "whole_path":
            ingest(spark, task.source, f"{task.target}/raw")
            featured(spark, f"{task.target}/raw", f"{task.target}/featured", task.source)
            grayscale(spark, f"{task.target}/featured", f"{task.target}/gray")
    spark.stop()


def landing_in(home: str) -> str:
    """The landing folder that a home was made for."""
    return Path(home, "landing_folder").read_text().strip()


if __name__ == "__main__":
    main()
