"""The project's Spark session, set up for a few rows: it starts faster and plans queries faster."""

from resources.delta.spark_session import DeltaSpark, ExecutorName, spark_session

# A few rows at a time: compiling queries and spreading them over tasks takes longer than it saves.
SMALL_WORK = {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


def small_spark(scratch: str, master: str = "local[2]", executor: ExecutorName = "auto") -> DeltaSpark:
    """Return a session on two cores; it starts when it is first used."""
    settings = spark_session(master, scratch=scratch).spark_config
    return DeltaSpark(spark_config={**settings, **SMALL_WORK}, executor=executor)
