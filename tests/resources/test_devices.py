"""Where predictions are computed, on a machine without a GPU."""

import os
import shutil
from pathlib import Path

import pytest

from resources.delta.spark_session import DeltaSpark
from resources.devices import Device, InferenceDevice
from resources.processes import child_process

NO_GPU, FAILS = "print(0)", "import nowhere"  # programs that count GPUs
SPARK = DeltaSpark(spark_config={"spark.master": "local[1]"})  # never started
pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has an NVIDIA driver")


def test_the_cpu_is_taken_where_there_is_no_driver_or_it_is_asked_for() -> None:
    device = InferenceDevice().resolve(SPARK, "torch", NO_GPU)
    assert device == Device("cpu", "this machine has no NVIDIA driver: there is no nvidia-smi")
    assert InferenceDevice(choice="cpu").resolve(SPARK, "torch", NO_GPU).reason == "IMAGE_ASSETS_DEVICE is cpu"


def test_a_driver_alone_is_no_gpu_that_the_framework_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    device = InferenceDevice().resolve(SPARK, "torch", NO_GPU)
    assert device == Device("cpu", "torch finds no GPU where tasks run")


def test_a_gpu_that_is_not_there_is_told_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match="'cuda', but tensorflow finds no GPU where tasks run: fix that"):
        InferenceDevice(choice="cuda").resolve(SPARK, "tensorflow", FAILS)


def test_a_driver_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "PROBE_SECONDS", 1)
    with pytest.raises(TimeoutError, match="took longer than 1 s: check whether nvidia-smi answers"):
        child_process.gpus_found("import time; time.sleep(60)")
