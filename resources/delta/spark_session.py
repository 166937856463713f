"""dagster-pyspark's session, configured for Delta, and progress from Spark's finished tasks."""

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import dagster as dg
from dagster_pyspark import PySparkResource
from py4j.protocol import Py4JError
from pydantic import Field
from pyspark import SparkContext
from pyspark.sql import DataFrame, SparkSession

from resources.delta.table import MEBIBYTE, FileSizes
from resources.files import s3
from resources.progress import ProgressLine

TASKS_PER_CORE = 4  # at most
# A local session mostly works for seconds, of which Java would spend half on optimizing code that runs a few times.
SHORT_WORK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
POLL_SECONDS = 0.5  # between two questions to Spark's status tracker

ExecutorName = Literal["auto", "local", "spark"]


@contextmanager
def cached(rows: DataFrame) -> Iterator[DataFrame]:
    """The rows, computed once inside the block.

    They must not stay cached: Spark would return them to every later reader of the same table, even after delta-rs
    has changed it.
    """
    rows = rows.cache()
    try:
        yield rows
    finally:
        rows.unpersist()


def task_count(spark: SparkSession, wanted: int) -> int:
    """About `wanted` tasks, the same number for each core: at least one and at most TASKS_PER_CORE.

    Spark reports a task when it has finished, so a progress line needs more tasks than cores.
    """
    cores = spark.sparkContext.defaultParallelism
    return whole_rounds(min(wanted, TASKS_PER_CORE * cores), cores)


def whole_rounds(wanted: int, cores: int) -> int:
    """About `wanted` tasks, the same number for each core, so that none is idle while the last tasks run."""
    return max(cores, wanted - wanted % cores)


@contextmanager
def counting_tasks(spark: SparkSession, progress: ProgressLine, *, rows: int, tasks: int) -> Iterator[None]:
    """Move the progress line as Spark finishes the tasks of the block, each taken for an equal share of the rows.

    Args:
        spark: The session whose jobs are counted: those that this thread starts in the block.
        progress: The line; an open one, which may have counted earlier blocks.
        rows: What the block processes in all, in the line's unit.
        tasks: The number of tasks of the stage that does the work. Stages with another number are ignored, such as
            those in which Delta reads its log.
    """
    context, group, before = spark.sparkContext, str(uuid4()), progress.done
    over = threading.Event()

    def finished_tasks() -> int:
        tracker = context.statusTracker()
        jobs = filter(None, map(tracker.getJobInfo, tracker.getJobIdsForGroup(group)))
        stages = filter(None, (tracker.getStageInfo(stage) for job in jobs for stage in job.stageIds))
        return max((stage.numCompletedTasks for stage in stages if stage.numTasks == tasks), default=0)

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            progress.reach(before + rows * finished_tasks() // tasks)

    context.setJobGroup(group, progress.desc)
    polling = threading.Thread(target=poll, daemon=True)
    polling.start()
    try:
        yield
        over.set()
        polling.join()
        progress.reach(before + rows)
    finally:
        over.set()
        polling.join()
        for name in ("spark.jobGroup.id", "spark.job.description"):
            context.setLocalProperty(name, None)  # pyright: ignore[reportArgumentType] - None removes it


class DeltaSpark(PySparkResource):
    """dagster-pyspark's session, started on first use; its workers run this environment's Python by default."""

    executor: ExecutorName = Field(
        default="auto",
        description="Where tasks run: auto (threads for little work on a local master, else Spark), local or spark.",
    )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Do nothing: starting Spark takes seconds, and many runs never use it."""

    @property
    def is_local(self) -> bool:
        """Whether the session runs, or would run, on this machine alone."""
        return is_local(self._master)

    @property
    def local_cores(self) -> int:
        """How many cores a local master uses."""
        cores = re.match(r"local\[(\d+)", self._master)
        return 1 if self._master == "local" else int(cores[1]) if cores else os.cpu_count() or 1

    @property
    def _master(self) -> str:
        return str(self.spark_config.get("spark.master", "local[*]"))

    @property
    def spark_session(self) -> SparkSession:
        """The session; the first use starts it."""
        if self._spark_session is None:
            self._start()
        return self._spark_session

    def _start(self) -> None:
        # Spark takes the workers' Python from the environment only.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if is_local(self.spark_config["spark.master"]):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        session = active_session()
        if session and all(session.conf.get(name, None) == value for name, value in self.spark_config.items()):
            self._spark_session = session  # setting each value again would take a third of a second
        else:
            on_s3 = s3.SPARK_READS_S3 in self.spark_config
            if on_s3:
                s3.require_jars()
            self._spark_session = SparkSession.builder.config(map=self.spark_config).getOrCreate()
            if on_s3:  # not as settings: Spark puts those on the command line of its JVM
                self._spark_session.sparkContext.environment.update(s3.worker_variables(os.environ))


def active_session() -> SparkSession | None:
    """The process's session, if it has one and its Java process is alive."""
    try:
        return SparkSession.getActiveSession()
    except (Py4JError, OSError):
        pass
    context = SparkContext.getOrCreate()  # the one of the dead process
    for _ in range(2):  # the first attempt may fail after it has forgotten the dead process
        with suppress(Py4JError, OSError):
            context.stop()
    # pyspark has no public function that makes it start another Java process after the first has died.
    SparkContext._gateway = SparkContext._jvm = None
    return None


def is_local(master: str) -> bool:
    """Whether Spark runs in the driver's process."""
    return master.startswith("local") and not master.startswith("local-cluster")


def gpu_settings(gpus: int, tasks_per_gpu: int) -> dict[str, str]:
    """Spark settings for executors with `gpus` GPUs each, each shared by `tasks_per_gpu` tasks."""
    if not gpus:
        return {}
    return {
        "spark.executor.resource.gpu.amount": str(gpus),
        "spark.executor.resource.gpu.discoveryScript": str(Path(__file__).with_name("gpu_addresses.sh")),
        "spark.executor.resource.gpu.vendor": "nvidia.com",  # required on Kubernetes
        "spark.task.resource.gpu.amount": str(1 / tasks_per_gpu),
    }


def spark_session(
    master: str, *, scratch: str, more: Mapping[str, str] | None = None, executor: ExecutorName = "auto"
) -> DeltaSpark:
    """The Spark session on `master`; `scratch` is a local folder for Spark's warehouse and temporary files.

    `more` holds settings for storage and GPUs; `executor` says which work goes to Spark.
    """
    settings = {
        "spark.master": master,
        "spark.app.name": "image_assets",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": f"{scratch}/warehouse",
        # For files that are not written through DeltaTables, which sets a codec for each table; they hold images, too.
        "spark.sql.parquet.compression.codec": "uncompressed",
        # Lets a task read many small files: with Spark's default of 4 MB a file, a task would read a handful of images.
        "spark.sql.files.openCostInBytes": str(64 * 1024),
        # An Arrow batch holds image bytes: Spark's default of 10,000 images would exceed 2 GiB, and so would 128 large
        # images without a limit in bytes.
        "spark.sql.execution.arrow.maxRecordsPerBatch": "128",
        "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * MEBIBYTE),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # mimalloc reuses the memory of the last batch; the default pool gets new pages from the kernel each time.
        "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "mimalloc",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "8",
        "spark.databricks.delta.snapshotPartitions": "4",
        "spark.databricks.delta.optimize.minFileSize": str(FileSizes.minimum_bytes),
        "spark.databricks.delta.optimize.maxFileSize": str(FileSizes.maximum_bytes),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": "3g",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}",
    }
    if is_local(master):
        settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        settings["spark.driver.extraJavaOptions"] += f" {SHORT_WORK}"
    return DeltaSpark(spark_config=settings | dict(more or {}), executor=executor)
