"""dagster-pyspark's session, with Delta switched on."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster_pyspark import PySparkResource
from pyspark.sql import DataFrame, SparkSession

from resources.delta.table_layout import FileSizes
from resources.files import s3

MEBIBYTE = 1024 * 1024


@contextmanager
def cached(rows: DataFrame) -> Iterator[DataFrame]:
    """The rows, computed once while the block lasts.

    Rows that stay cached are given again to whoever reads the same table, also after delta-rs changed it: Spark does
    not notice.
    """
    rows = rows.cache()
    try:
        yield rows
    finally:
        rows.unpersist()


class DeltaSpark(PySparkResource):
    """dagster-pyspark's session, whose Python workers are this environment's Python unless told otherwise."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Do nothing yet: starting Spark takes seconds, and many runs never use it."""

    @property
    def spark_session(self) -> SparkSession:
        """The session, started when it is first used."""
        if self._spark_session is None:
            self._start()
        return self._spark_session

    def _start(self) -> None:
        # Spark takes the workers' Python from the environment only.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if is_local(self.spark_config["spark.master"]):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        session = SparkSession.getActiveSession()
        if session and all(session.conf.get(name, None) == value for name, value in self.spark_config.items()):
            self._spark_session = session  # as it is: setting each value again takes a third of a second
        else:
            on_s3 = s3.SPARK_READS_S3 in self.spark_config
            if on_s3:
                s3.require_jars()
            self._spark_session = SparkSession.builder.config(map=self.spark_config).getOrCreate()
            if on_s3:  # as no setting of Spark's: those are on the command line of its Java side
                self._spark_session.sparkContext.environment.update(s3.worker_variables(os.environ))


def is_local(master: str) -> bool:
    """Whether Spark runs in the driver's own process."""
    return master.startswith("local") and not master.startswith("local-cluster")


def gpu_settings(gpus: int, tasks_per_gpu: int) -> dict[str, str]:
    """Spark's settings for executors with so many GPUs each, which so many tasks at once share."""
    if not gpus:
        return {}
    return {
        "spark.executor.resource.gpu.amount": str(gpus),
        "spark.executor.resource.gpu.discoveryScript": str(Path(__file__).with_name("gpu_addresses.sh")),
        "spark.executor.resource.gpu.vendor": "nvidia.com",  # what Kubernetes asks for
        "spark.task.resource.gpu.amount": str(1 / tasks_per_gpu),
    }


def spark_session(master: str, *, scratch: str, more: Mapping[str, str] | None = None) -> DeltaSpark:
    """The Spark session on `master`; `scratch` is a local folder for Spark's warehouse and temporary files.

    `more` settings are those of the storage that it works on, and of GPUs.
    """
    settings = {
        "spark.master": master,
        "spark.app.name": "image_assets",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": f"{scratch}/warehouse",
        # What is not written through DeltaTables, which sets a codec for each table, holds images too.
        "spark.sql.parquet.compression.codec": "uncompressed",
        # Many small files a task: with Spark's 4 MB a file, a task would take a handful of images.
        "spark.sql.files.openCostInBytes": str(64 * 1024),
        # An Arrow batch holds image bytes: 10,000 images, Spark's default, would pass the limit of 2 GiB, and so would
        # 128 large ones without a limit in bytes.
        "spark.sql.execution.arrow.maxRecordsPerBatch": "128",
        "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * MEBIBYTE),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # Memory that one batch frees serves the next one: with the default pool the kernel gives new pages each time.
        "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "mimalloc",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "8",
        "spark.databricks.delta.snapshotPartitions": "4",
        "spark.databricks.delta.optimize.minFileSize": str(FileSizes.minimum_bytes),
        "spark.databricks.delta.optimize.maxFileSize": str(FileSizes.maximum_bytes),
        "spark.sql.streaming.metricsEnabled": "false",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": "3g",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}",
    }
    if is_local(master):
        settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return DeltaSpark(spark_config=settings | dict(more or {}))
