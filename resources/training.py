"""What every training gets: its processes, for all distributors, and the weights of its backbone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import dagster as dg
from pydantic import Field

from resources.delta.executors import runs_locally
from resources.delta.spark_session import DeltaSpark
from resources.processes.distributors import run_in_barrier_job
from resources.processes.horovod import run_with_horovod
from resources.processes.local_ranks import local_ranks
from resources.processes.rank_process import Distributor
from resources.weight_files import SOURCES, weights_file

# Any: the function is the caller's, and so are its arguments and results.
# Calls a function on each rank, with arguments, and returns what it returned, in order of rank.
Run = Callable[..., list[Any]]


class TrainingProcesses(dg.ConfigurableResource):
    """Starts the processes of a training run: each in a Spark task slot, or on this machine."""

    processes: int = Field(default=2, gt=0, description="Processes (ranks) per training.")

    @contextmanager
    def started(self, pyspark: DeltaSpark, distributor: Distributor, imports: Sequence[str]) -> Iterator[Run]:
        """If the ranks run on this machine, starts them while the block prepares the call.

        Args:
            pyspark: Runs all other ranks. Ranks on this machine do not start it: that takes longer than fitting a head.
            distributor: The library that starts the ranks.
            imports: The modules that the ranks need.

        Yields:
            A function that does as `run` does, once.
        """
        if distributor == "horovod" and runs_locally(pyspark, 0):
            with local_ranks(self.processes, imports) as run:
                yield run
        else:
            yield partial(self.run, pyspark, distributor)

    def run(
        self,
        pyspark: DeltaSpark,
        distributor: Distributor,
        function: Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls the function on each rank, in Spark's executors, and returns the results in order of rank.

        Function and arguments are pickled. Ranks get this process's environment and import the function by name.

        Args:
            pyspark: The session whose executors run the ranks.
            distributor: The library that starts the ranks.
            function: Connects the ranks itself: with `horovod.torch.init()` or `horovod.tensorflow.init()`, with
                `torch.distributed.init_process_group("gloo")`, or with `tf.distribute.MultiWorkerMirroredStrategy()`.
            args: Positional arguments of the function.
            kwargs: Keyword arguments of the function.

        Raises:
            RankFailure: The function failed on a rank, or a rank was killed.
        """
        spark = pyspark.spark_session
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
