"""What every training gets: its processes, for all distributors, and the weights of its backbone."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import dagster as dg
from pydantic import Field
from pyspark.sql import SparkSession

from resources.processes.distributors import run_in_barrier_job
from resources.processes.horovod import run_with_horovod
from resources.processes.local_ranks import run_on_this_machine
from resources.processes.rank_process import Distributor
from resources.weight_files import SOURCES, weights_file


class TrainingProcesses(dg.ConfigurableResource):
    """Starts the processes of a training run: each in a Spark task slot, or on this machine."""

    processes: int = Field(default=2, gt=0, description="Processes (ranks) per training.")

    # Any: the function is the caller's, and so are its arguments and results.
    def run(
        self,
        spark: SparkSession | None,
        distributor: Distributor,
        function: Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls the function on each rank and returns the results in order of rank.

        Function and arguments are pickled. Ranks get this process's environment and import the function by name.

        Args:
            spark: The session whose executors run the ranks. None starts them on this machine; only Horovod can.
            distributor: The library that starts the ranks.
            function: Connects the ranks itself: with `horovod.torch.init()` or `horovod.tensorflow.init()`, with
                `torch.distributed.init_process_group("gloo")`, or with `tf.distribute.MultiWorkerMirroredStrategy()`.
            args: Positional arguments of the function.
            kwargs: Keyword arguments of the function.

        Raises:
            RankFailure: The function failed on a rank, or a rank was killed.
        """
        if spark is None:
            return run_on_this_machine(self.processes, function, args, kwargs)
        if distributor == "horovod":
            return run_with_horovod(spark, self.processes, function, args, kwargs)
        return run_in_barrier_job(distributor, spark, self.processes, function, args, kwargs)


class BackboneWeights(dg.ConfigurableResource):
    """The backbone's weights: `auto`, `imagenet`, `none`, or a folder with a weight file for each framework."""

    source: str = Field(default="auto", description="auto, imagenet, none, or a folder with weight files.")

    def identity(self, weight_files: Sequence[str]) -> str:
        """A text that is equal for equal weights: the source's name, or the SHA-256 of a folder's weight file.

        Args:
            weight_files: The names that the file in the folder may have, which differ by backbone and framework.

        Raises:
            FileNotFoundError: The folder does not hold such a file.
        """
        if self.source in SOURCES:
            return self.source
        return sha256(weights_file(self.source, weight_files).read_bytes()).hexdigest()
