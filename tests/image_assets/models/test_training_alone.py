"""Trainings in one process, in both frameworks: what they go on from, how exact they are, what they refuse."""

import os
import signal
import warnings
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from image_assets.models.training_plan import TrainingResult
from tests.image_assets.conftest import HEAD, Work, in_a_process, red_and_blue

pytestmark = pytest.mark.training
FRAMEWORKS = pytest.mark.parametrize("framework", ["tensorflow", "torch"])


def training_of(framework: str) -> Any:
    """The module of a framework's training. Models are not logged here: that takes longer than all the rest."""
    warnings.simplefilter("ignore")
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    module = import_module(f"image_assets.models.{framework}_training")
    network = {"tensorflow": "TensorflowNetwork", "torch": "TorchNetwork"}[framework]
    getattr(module, network).log = lambda self, places: "models:/none"
    return module


def several(framework: str, *arguments: tuple[Any, ...]) -> list[TrainingResult]:
    """One training after the other, in the same process."""
    train = training_of(framework).train
    return [train(*each) for each in arguments]


def killed_after(epoch: int, phase: str, framework: str, arguments: tuple[Any, ...]) -> None:
    """A training whose process is killed when an epoch of a phase was saved."""
    from image_assets.models import epochs as checkpoints

    module = training_of(framework)
    save = checkpoints.Checkpoints.save

    def save_and_die(self: Any, name: str, parts: Any, values: Any) -> None:
        save(self, name, parts, values)
        if (name, len(values["history"])) == (phase, epoch):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.Checkpoints.save = save_and_die
    module.train(*arguments)


@FRAMEWORKS
def test_a_killed_training_goes_on_to_the_very_same_weights(work: Work, framework: str) -> None:
    arguments = work.arguments(trainable="top_blocks", augmentation=True)
    with pytest.raises(BrokenProcessPool):
        in_a_process(killed_after, 1, "fine_tuning", framework, arguments)
    fresh = replace(work.places, checkpoints=str(work.folder / "others"), embeddings=str(work.folder / "none yet"))
    resumed, whole = in_a_process(several, framework, arguments, (*arguments[:3], fresh))
    assert resumed.weights_digest == whole.weights_digest
    assert [{**epoch, "seconds": 0} for epoch in resumed.history] == [
        {**epoch, "seconds": 0} for epoch in whole.history
    ]
    assert len(whole.history) == 4
    assert (resumed.embedded_images, whole.embedded_images > 0) == (0, True)


@FRAMEWORKS
def test_everything_can_be_trained_in_half_precision_and_early_stopping_ends_it(work: Work, framework: str) -> None:
    patient = replace(HEAD, epochs=50, learning_rate=1e-30, patience=2)
    everything = work.arguments(trainable="all", precision="bfloat16", head=patient)
    (trained,) = in_a_process(several, framework, everything)
    assert trained.precision == "bfloat16"
    head = [epoch["validation_loss"] for epoch in trained.history[:-2]]
    assert 3 <= len(head) < 50
    assert all(np.isfinite(epoch["loss"]) for epoch in trained.history)


@FRAMEWORKS
def test_a_loss_that_is_no_number_ends_the_training_with_the_remedy(work: Work, framework: str) -> None:
    steep = work.arguments(head=replace(HEAD, learning_rate=1e30))
    with pytest.raises(
        FloatingPointError, match=r"epoch \d ends with loss .* lower the learning rate, which is 1e\+30"
    ):
        in_a_process(several, framework, steep)


@FRAMEWORKS
def test_five_hundred_labels_of_which_some_have_two_images(to_work: Callable[..., Work], framework: str) -> None:
    images = [(content, number % 20) for number, (content, _) in enumerate(red_and_blue(40))]
    work = to_work(images, images[:8])
    (trained,) = in_a_process(several, framework, work.arguments(labels=500))
    assert all(np.isfinite(epoch["validation_loss"]) for epoch in trained.history)
