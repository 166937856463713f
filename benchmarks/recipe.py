"""The common recipe, as tutorials show it, made neither slower nor faster."""

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
    """A session with Spark's default settings, except for Delta, the master and the driver's memory."""
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
    """Start the executors' Python processes, which Spark would otherwise start with the first job."""
    spark.sparkContext.parallelize(range(2), 2).map(str).collect()


def write(images: DataFrame, target: str) -> None:
    """Write uncompressed, because image files are compressed already; then compact, with the restored codec."""
    spark = images.sparkSession
    codec = spark.conf.get(CODEC)
    spark.conf.set(CODEC, "uncompressed")
    images.write.format("delta").mode("overwrite").save(target)
    spark.conf.set(CODEC, str(codec))
    spark.sql(f"OPTIMIZE delta.`{target}`")


def ingest(spark: SparkSession, source: str, target: str) -> None:
    """Write a Delta table of the files, as Spark's `binaryFile` source reads them."""
    files = spark.read.format("binaryFile").option("recursiveFileLookup", True).option("pathGlobFilter", "*.jpg")
    write(files.load(source), target)


def featured(spark: SparkSession, source: str, target: str, landing: str) -> None:
    """Write the images with label, label index, width and height."""

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
    """Write the images in grayscale, converted one label at a time and joined with their features again."""

    def in_gray(images: pd.DataFrame) -> pd.DataFrame:
        return images.assign(content=images["content"].map(to_pillow_gray))

    tidy = spark.read.format("delta").load(source)
    trimmed = tidy.select("path", "label", "content")
    gray = trimmed.groupBy("label").applyInPandas(in_gray, trimmed.schema)
    write(gray.join(tidy.drop("label", "content"), on="path"), target)


def rebuild(spark: SparkSession, landing: str, target: str) -> None:
    """Write all tables into the folder `target`."""
    ingest(spark, landing, f"{target}/raw")
    featured(spark, f"{target}/raw", f"{target}/featured", landing)
    grayscale(spark, f"{target}/featured", f"{target}/gray")


def main() -> None:
    """Run one step."""
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
    spark.stop()


def landing_in(home: str) -> str:
    """The landing folder of a home."""
    return Path(home, "landing_folder").read_text().strip()


if __name__ == "__main__":
    main()
