"""GPUs that Spark hands to its tasks, discovered by what says to be nvidia-smi."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resources.delta.spark_session import gpu_settings
from resources.settings import read_settings
from scripts.cluster import CLUSTER_ENVIRONMENT

SCRIPT = gpu_settings(1, 1)["spark.executor.resource.gpu.discoveryScript"]
# A cluster of one executor in processes of this machine; its worker has to discover the GPU as well.
ON_CLUSTER = """
import os, sys
from pathlib import Path
import dagster as dg
from image_assets.models.engines import use_assigned_gpu
from resources.delta.spark_session import DeltaSpark, gpu_settings, spark_session

settings = spark_session("local-cluster[1,2,1024]", scratch=sys.argv[1], more=gpu_settings(1, 2)).spark_config
for_worker = {name.replace("executor", "worker"): value for name, value in settings.items() if ".resource.gpu." in name}
session = DeltaSpark(spark_config={**for_worker, **settings, "spark.driver.memory": "1g"})

def given(_):
    use_assigned_gpu()
    return os.environ["CUDA_VISIBLE_DEVICES"]

found = session.spark_session.sparkContext.parallelize(range(4), 4).map(given).collect()
Path(sys.argv[1], "found").write_text(",".join(found))
session.spark_session.stop()
"""


def with_nvidia_smi(folder: Path, *, says: str) -> dict[str, str]:
    """Variables of a process that finds this nvidia-smi first."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{says}\n")
    file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(("says", "addresses"), [("echo 3", ["3"]), ("echo 0; echo 1", ["0", "1"])])
def test_gpus_are_told_as_spark_reads_them(says: str, addresses: list[str], tmp_path: Path) -> None:
    variables = with_nvidia_smi(tmp_path, says=says)
    printed = subprocess.run([SCRIPT], env=variables, check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == {"name": "gpu", "addresses": addresses}


def test_a_driver_that_does_not_answer_is_told_and_no_address(tmp_path: Path) -> None:
    variables = with_nvidia_smi(tmp_path, says="echo no devices were found >&2; exit 6")
    failed = subprocess.run([SCRIPT], env=variables, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no devices were found" in failed.stderr


@pytest.mark.spark
def test_a_task_sees_the_gpu_that_spark_gave_it_and_no_other(tmp_path: Path) -> None:
    variables = with_nvidia_smi(tmp_path, says="echo 3") | CLUSTER_ENVIRONMENT
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", ON_CLUSTER, str(tmp_path)], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "found").read_text() == "3,3,3,3"


def test_gpus_of_executors_are_a_setting_of_clusters() -> None:
    settings = read_settings({"IMAGE_ASSETS_SPARK_MASTER": "yarn", "IMAGE_ASSETS_SPARK_GPUS": "1"})
    assert (settings.spark_gpus, settings.tasks_per_gpu) == (1, 4)
    assert gpu_settings(1, 4)["spark.task.resource.gpu.amount"] == "0.25"
    with pytest.raises(ValueError, match="cannot assign GPUs"):
        read_settings({"IMAGE_ASSETS_SPARK_GPUS": "1"})
    with pytest.raises(ValueError, match="expected a number from 0"):
        read_settings({"IMAGE_ASSETS_SPARK_GPUS": "all"})
