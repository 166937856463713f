"""Checkpoints of a training."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from image_assets.models.epochs import Checkpoints


def test_a_checkpoint_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "a training"), "0a1b")
    assert checkpoints.load("head") is None
    weights = {"head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "head/bias": np.zeros(2, np.float32)}
    checkpoints.save("head", {"weights": weights, "optimizer": {"step": np.array(7.0)}}, {"best": [0.5, -1.0]})
    found = checkpoints.load("head")
    assert found is not None
    assert {name: array.tolist() for name, array in found.part("weights").items()} == {
        name: array.tolist() for name, array in weights.items()
    }
    assert found.part("optimizer")["step"].shape == ()
    assert found.part("optimizer")["step"] == 7
    assert found.values == {"best": [0.5, -1.0]}
    assert checkpoints.load("fine_tuning") is None
    assert replace(checkpoints, backbone="2c3d").load("head") is None


@pytest.mark.parametrize("length", [0, 100])
def test_a_checkpoint_that_a_power_failure_cut_off_counts_as_missing(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(str(tmp_path), "0a1b")
    checkpoints.save("head", {"weights": {"bias": np.ones(100)}}, {})
    os.truncate(tmp_path / "head-0a1b.safetensors", length)
    assert checkpoints.load("head") is None
    assert "head-0a1b.safetensors cannot be read, so this part of the training starts again" in caplog.text


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), "0a1b")
    checkpoints.save("head", {"weights": {"bias": np.ones(2)}}, {})
    with pytest.raises(TypeError):
        checkpoints.save("head", {"weights": {"bias": np.zeros(2)}}, {"not JSON": object()})
    found = checkpoints.load("head")
    assert found is not None
    assert found.part("weights")["bias"].tolist() == [1, 1]
