"""Trainings in one process, in both frameworks: what they go on from, how exact they are, what they refuse."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from image_assets.models.backbones import CURRENT_BACKBONE
from image_assets.models.training_plan import TrainingResult
from tests.image_assets.conftest import FINE_TUNING, HEAD, Work, in_a_process, red_and_blue
from tests.support.photographs import WEIGHTS
from tests.support.rank_programs import shrink_backbones

pytestmark = pytest.mark.training
Trainings = Callable[..., list[TrainingResult]]
FRAMEWORKS = pytest.mark.parametrize("framework", ["tensorflow", "torch"])


def training_of(framework: str) -> Any:
    """The module of a framework's training, on small images. Models are not logged: that takes longer than the rest."""
    warnings.simplefilter("ignore")
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    shrink_backbones()
    module = import_module(f"image_assets.models.{framework}_training")
    network = {"tensorflow": "TensorflowNetwork", "torch": "TorchNetwork"}[framework]
    getattr(module, network).log = lambda self, places: "models:/none"
    return module


def backbone_of_tests() -> str:
    """The folder of trained weights; without it, a backbone that depends on the seed."""
    if not WEIGHTS.is_dir():
        pytest.skip(f"no weights in {WEIGHTS}")
    return str(WEIGHTS)


def several(framework: str, *arguments: tuple[Any, ...]) -> list[TrainingResult]:
    """One training after the other, in the same process."""
    train = training_of(framework).train
    return [train(*each) for each in arguments]


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """Trainings one after the other, in one process for each framework: starting it takes as long as one of them."""
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in ("tensorflow", "torch")}
        yield lambda framework, *arguments: processes[framework].submit(several, framework, *arguments).result()


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


@pytest.mark.parametrize(
    ("framework", "views", "killed_in", "changes", "epochs"),
    [
        ("tensorflow", 0, "fine_tuning", {}, 4),
        *(("torch", views, "refit", {"head_fit": "closed_form", "refit": True}, 3) for views in (0, 1)),
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_weights(
    work: Work,
    trainings: Trainings,
    framework: str,
    views: int,
    killed_in: str,
    changes: dict[str, Any],
    epochs: int,
) -> None:
    averaging = replace(FINE_TUNING, averaged_epochs=2)
    changes |= {"augmentation": True, "augmented_views": views, "fine_tuning": averaging}
    arguments = work.arguments(trainable="top_blocks", top_blocks=1, **changes)
    with pytest.raises(BrokenProcessPool):
        in_a_process(killed_after, 1, killed_in, framework, arguments)
    fresh = replace(work.places, checkpoints=str(work.folder / "others"))
    resumed, whole = trainings(framework, arguments, (*arguments[:3], fresh))
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.training_embeddings is not None
    assert whole.training_embeddings is not None
    assert resumed.training_embeddings.directions.shape == (19, 1280)
    assert resumed.training_embeddings.directions == pytest.approx(whole.training_embeddings.directions, abs=1e-2)
    assert [{**epoch, "seconds": 0} for epoch in resumed.history] == [
        {**epoch, "seconds": 0} for epoch in whole.history
    ]
    assert len(whole.history) == epochs
    assert resumed.embedded_images == whole.embedded_images > 0, "the table has none of these images"


def test_a_training_goes_on_only_from_checkpoints_of_the_same_backbone(work: Work, trainings: Trainings) -> None:
    # As with `auto`, whose weights are there in one attempt and not in the other. Untrained ones depend on the seed.
    untrained, other = trainings("torch", *(work.arguments(seed=seed) for seed in (0, 1)))
    assert [epoch["loss"] for epoch in other.history] != [epoch["loss"] for epoch in untrained.history]


@FRAMEWORKS
def test_a_head_in_closed_form_takes_one_pass_whatever_the_seed_and_is_fitted_again_after_its_figures_are_known(
    work: Work, trainings: Trainings, framework: str
) -> None:
    abstaining = {"minimum_precision": 0.95, "minimum_probability": 0.6}
    settings = {"head_fit": "closed_form", "backbone": backbone_of_tests(), **abstaining}
    variants = ({}, {"seed": 1}, {"refit": True})
    trained, other_seed, refitted = trainings(framework, *(work.arguments(**settings, **each) for each in variants))
    assert other_seed.weights_digest == trained.weights_digest
    assert trained.training_embeddings is not None
    assert trained.training_embeddings.directions.shape[0] == 19
    assert 0 < trained.training_embeddings.threshold < 1
    assert trained.thresholds is not None
    assert (trained.thresholds.coverage, trained.thresholds.precision) == (1, 1)
    assert all(of is not None and of >= 0.6 for of in trained.thresholds.by_label)
    (figures,) = trained.history
    assert figures["accuracy"] == figures["validation_accuracy"] == 1
    assert 0 < figures["validation_loss"] < 0.5, "calibrated: sure, but not certain, of the few images it saw"
    assert [{**epoch, "seconds": 0} for epoch in refitted.history] == [{**figures, "seconds": 0}], "of the same head"
    assert refitted.thresholds == trained.thresholds
    assert refitted.weights_digest != trained.weights_digest


@FRAMEWORKS
def test_fine_tuning_starts_with_the_head_in_closed_form_and_goes_on_with_both_splits(
    work: Work, trainings: Trainings, framework: str
) -> None:
    levels = {"backbone_name": CURRENT_BACKBONE.name, "top_blocks": CURRENT_BACKBONE.levels}
    settings = {"head_fit": "closed_form", "trainable": "top_blocks", "minimum_probability": 0.5, **levels}
    arguments = [work.arguments(**settings, refit=refit) for refit in (False, True)]
    others = replace(work.places, checkpoints=str(work.folder / "others"))
    once, again = trainings(framework, arguments[0], (*arguments[1][:3], others))
    for trained in (once, again):
        assert trained.thresholds is not None
        assert (trained.thresholds.by_label, trained.thresholds.coverage) == ([0.5, 0.5], 1)
        assert len(trained.history) == 1 + 2
        assert np.isfinite(trained.history[-1]["validation_loss"])
    assert again.weights_digest != once.weights_digest
    assert again.network, "its ONNX answers as it does"
    assert once.training_embeddings is not None
    assert again.training_embeddings is not None
    assert again.training_embeddings.directions.shape == (19, CURRENT_BACKBONE.features), "all features are compared"
    assert (again.training_embeddings.directions != once.training_embeddings.directions).any()
    assert again.training_embeddings.threshold == again.training_embeddings.rescaled(once.training_embeddings).threshold


@FRAMEWORKS
def test_everything_can_be_trained_in_half_precision_and_early_stopping_ends_it(
    work: Work, trainings: Trainings, framework: str
) -> None:
    patient = replace(HEAD, epochs=50, learning_rate=1e-30, patience=2)
    once = replace(FINE_TUNING, epochs=1)
    everything = work.arguments(trainable="all", precision="bfloat16", head=patient, fine_tuning=once)
    (trained,) = trainings(framework, everything)
    assert trained.precision == "bfloat16"
    assert trained.network, "its ONNX answers as it does"
    head = [epoch["validation_loss"] for epoch in trained.history[:-1]]
    assert 3 <= len(head) < 50
    assert all(np.isfinite(epoch["loss"]) for epoch in trained.history)


@FRAMEWORKS
def test_a_loss_that_is_no_number_ends_the_training_with_the_remedy(
    work: Work, trainings: Trainings, framework: str
) -> None:
    steep = work.arguments(head=replace(HEAD, learning_rate=1e30))
    with pytest.raises(
        FloatingPointError, match=r"epoch \d ends with loss .* lower the learning rate, which is 1e\+30"
    ):
        trainings(framework, steep)


@FRAMEWORKS
def test_five_hundred_labels_of_which_some_have_two_images(
    to_work: Callable[..., Work], trainings: Trainings, framework: str
) -> None:
    images = [(content, number % 20) for number, (content, _) in enumerate(red_and_blue(40))]
    work = to_work(images, images[:8])
    (trained,) = trainings(framework, work.arguments(labels=500))
    assert all(np.isfinite(epoch["validation_loss"]) for epoch in trained.history)
