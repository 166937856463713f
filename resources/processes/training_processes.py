"""The processes that a training runs on, whichever distributor starts them."""

from collections.abc import Callable
from typing import Any

import dagster as dg
from pydantic import Field
from pyspark.sql import SparkSession

from resources.processes.distributors import run_in_barrier_job
from resources.processes.horovod import run_with_horovod
from resources.processes.rank_process import Distributor


class TrainingProcesses(dg.ConfigurableResource):
    """Processes that train together, each in a slot of Spark."""

    processes: int = Field(default=2, gt=0, description="Processes (ranks) that a training runs on.")

    # Any: the function is the caller's, and so is what it takes and returns.
    def run(
        self, spark: SparkSession, distributor: Distributor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> list[Any]:
        """What the function returned on each rank, in order of rank.

        Function and arguments are pickled; the ranks get this process's environment and import the function by name.
        The function connects the ranks itself: by `horovod.torch.init()` or `horovod.tensorflow.init()`, by
        `torch.distributed.init_process_group("gloo")`, or by `tf.distribute.MultiWorkerMirroredStrategy()`.
        """
        if distributor == "horovod":
            return run_with_horovod(spark, self.processes, function, args, kwargs)
        return run_in_barrier_job(distributor, spark, self.processes, function, args, kwargs)
