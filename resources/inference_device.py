"""Where predictions are computed."""

import shutil

import dagster as dg
from pydantic import Field
from pyspark.sql import SparkSession


class InferenceDevice(dg.ConfigurableResource):
    """A GPU where there is one, else the CPU."""

    choice: str = Field(default="auto", description="auto, cpu or cuda.")
    run_tags: dict[str, str] = Field(
        default={}, description="Tags that the run launcher gives such runs a GPU by, such as `dagster-k8s/config`."
    )

    def resolve(self, spark: SparkSession) -> str:
        """`cuda` or `cpu`: as chosen, else `cuda` where Spark hands GPUs to its tasks or this machine has a driver."""
        if self.choice != "auto":
            return self.choice
        handed_out = float(spark.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0") or 0) > 0
        here = str(spark.sparkContext.master).startswith("local") and shutil.which("nvidia-smi") is not None
        return "cuda" if handed_out or here else "cpu"
