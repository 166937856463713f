"""The device on which predictions are computed."""

import shutil
from dataclasses import dataclass
from functools import partial
from typing import Literal

import dagster as dg
from pydantic import Field

from resources.delta.executors import Executor
from resources.delta.spark_session import DeltaSpark
from resources.processes.child_process import gpus_found

DeviceChoice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Device:
    """`cuda` or `cpu`, and why."""

    name: str
    reason: str


class InferenceDevice(dg.ConfigurableResource):
    """A GPU if there is one, else the CPU."""

    choice: DeviceChoice = Field(default="auto", description="auto, cpu or cuda.")
    run_tags: dict[str, str] = Field(
        default={},
        description="Run tags that make the run launcher provide a GPU, such as `dagster-k8s/config`.",
    )

    def resolve(self, pyspark: DeltaSpark, framework: str, gpu_program: str) -> Device:
        """Where versions of a framework compute: as chosen, else on a GPU if there is one where tasks run.

        Args:
            pyspark: The session whose tasks, or whose machine, will compute; it is started only on a cluster.
            framework: The framework's name, for messages.
            gpu_program: A Python program that prints how many GPUs the framework finds.

        Raises:
            ValueError: `cuda` was chosen, and there is no GPU.
        """
        if self.choice == "cpu":
            return Device("cpu", "IMAGE_ASSETS_DEVICE is cpu")
        missing = (self.choice == "auto" and why_no_gpu(pyspark)) or why_gpu_not_found(pyspark, framework, gpu_program)
        if not missing:
            return Device("cuda", f"{framework} finds a GPU")
        if self.choice == "cuda":
            raise ValueError(f"IMAGE_ASSETS_DEVICE is 'cuda', but {missing}: fix that, or set it to auto or cpu")
        return Device("cpu", missing)


def why_no_gpu(pyspark: DeltaSpark) -> str | None:
    """Why tasks certainly have no GPU, known without running one; None if they may have one."""
    if pyspark.is_local:
        return None if shutil.which("nvidia-smi") else "this machine has no NVIDIA driver: there is no nvidia-smi"
    handed_out = float(pyspark.spark_session.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0") or 0) > 0
    return None if handed_out else "Spark hands no GPU to tasks: IMAGE_ASSETS_SPARK_GPUS is 0"


def why_gpu_not_found(pyspark: DeltaSpark, framework: str, gpu_program: str) -> str | None:
    """Why the framework cannot use a GPU where a task runs; None if it can."""
    executor = Executor(None if pyspark.is_local else pyspark.spark_session)
    (found,) = executor.run(partial(map, gpus_found), [gpu_program])
    return None if found else f"{framework or 'a model of an unknown framework'} finds no GPU where tasks run"
