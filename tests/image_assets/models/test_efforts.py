"""What an effort stands for, that settings which are set win, and how long a training is expected to take."""

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from image_assets.models.backbones import IMPLIED_BACKBONE
from image_assets.models.efforts import DEFAULTS, Effort, announcement, duration, expected_seconds
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.training import Task
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_plan import TrainingPlan
from resources.delta.petastorm_caches import Cache, PetastormCaches

CACHES = PetastormCaches(root="/caches")
SPLITS = [Cache(f"{split}-v1-0", "file:///caches", 10, (), "original", "rgb") for split in ("training", "validation")]


def plan(settings: dict[str, Any]) -> TrainingPlan:
    return TrainingConfig(**settings).plan(3, "auto", CACHES)


def fingerprint(settings: dict[str, Any]) -> str:
    return Task("torch", ["a", "b", "c"], *SPLITS, plan(settings), "auto", 2).fingerprint


def test_each_effort_takes_longer_than_the_one_before() -> None:
    seconds = [expected_seconds(FRAMEWORKS["torch"], plan({"effort": effort}), 2000, 400) for effort in DEFAULTS]
    assert seconds == sorted(set(seconds))
    assert expected_seconds(FRAMEWORKS["torch"], plan({}), 2000, 400, embedded=True) < seconds[0] / 2
    assert [plan({"effort": effort}).trainable for effort in DEFAULTS] == ["head", "top_blocks", "top_blocks"]


def test_a_larger_backbone_takes_longer() -> None:
    seconds = [
        expected_seconds(FRAMEWORKS["torch"], plan({"effort": "good", "backbone": backbone}), 2000, 400)
        for backbone in ("mobilenet_v2_levels", "efficientnet_lite0_levels", "efficientnet_lite2_levels", "resnet50")
    ]
    assert seconds == sorted(set(seconds))


def test_best_trains_a_larger_backbone_unless_another_one_is_chosen() -> None:
    assert [plan({"effort": effort}).backbone_name for effort in DEFAULTS] == [
        "efficientnet_lite0_levels",
        "efficientnet_lite0_levels",
        "efficientnet_lite2_levels",
    ]
    assert plan({"effort": "best", "backbone": "resnet50"}).backbone_name == "resnet50"
    assert plan({"effort": "best", "trainable": "head"}).backbone_name == plan({}).backbone_name


@pytest.mark.parametrize("effort", DEFAULTS)
def test_a_setting_that_is_set_wins_over_the_effort(effort: Effort) -> None:
    chosen = plan({"effort": effort, "trainable": "all", "fine_tuning_epochs": 3, "augmentation": False})
    assert (chosen.trainable, chosen.fine_tuning.epochs, chosen.augmentation) == ("all", 3, False)
    defaults = DEFAULTS[effort]
    assert chosen.fine_tuning.learning_rate == defaults["fine_tuning_learning_rate"]
    assert chosen.fine_tuning.averaged_epochs == defaults["averaged_epochs"]


def test_a_head_is_the_same_version_with_any_effort() -> None:
    assert len({fingerprint({"effort": effort, "trainable": "head"}) for effort in DEFAULTS} | {fingerprint({})}) == 1


@pytest.mark.parametrize(
    ("settings", "of_earlier_release"),
    [
        ({"refit": False}, "2d19d56cfbeb7c7e"),
        ({"head_fit": "epochs"}, "208e292654e0483b"),
        ({"trainable": "top_blocks"}, "6f83102f9fc9a976"),
        ({"trainable": "all", "augmentation": True, "fine_tuning_epochs": 3, "seed": 7}, "cc3f44cc076f59f6"),
    ],
)
def test_a_version_of_an_earlier_release_is_not_trained_again(
    settings: dict[str, Any], of_earlier_release: str
) -> None:
    assert fingerprint({"backbone": IMPLIED_BACKBONE, "class_weights_power": 1, **settings}) == of_earlier_release


@pytest.mark.parametrize("settings", [{"effort": "good"}, {"trainable": "top_blocks"}, {"effort": "best", "seed": 3}])
def test_recorded_settings_give_the_same_task_whatever_efforts_mean_later(settings: dict[str, Any]) -> None:
    recorded = TrainingConfig(**settings).resolved().model_dump()
    unset = {name for name, of in recorded.items() if of is None}
    assert unset == {"minimum_probability", "minimum_precision"}  # for which null has a meaning
    assert fingerprint(recorded) == fingerprint({**recorded, "effort": "quick"}) == fingerprint(settings)


def test_augmentation_of_a_head_is_refused_only_if_it_was_asked_for() -> None:
    with pytest.raises(ValueError, match="set effort to 'good'"):
        TrainingConfig(augmentation=True)
    assert not plan({"effort": "good", "trainable": "head"}).augmentation


@pytest.mark.parametrize(
    ("settings", "refit"),
    [
        ({}, True),
        ({"refit": False}, False),
        ({"effort": "good"}, False),  # it would take twice the time
        ({"effort": "good", "refit": True}, True),
        ({"effort": "best", "trainable": "all"}, True),
        ({"effort": "best", "refit": False}, False),
        ({"trainable": "all"}, False),  # as in releases without efforts
        ({"trainable": "all", "refit": True}, True),
        ({"head_fit": "epochs"}, False),
        ({"effort": "best", "head_fit": "epochs"}, False),
    ],
)
def test_versions_are_trained_on_both_splits_in_the_end(settings: dict[str, Any], refit: bool) -> None:
    assert plan(settings).refit is refit


def test_a_refit_without_a_head_in_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="set head_fit to 'closed_form', or refit to false"):
        TrainingConfig(head_fit="epochs", refit=True)


def test_a_refit_takes_as_many_epochs_as_were_best() -> None:
    best = plan({"effort": "best"})
    assert best.refit_schedule(7) == replace(best.fine_tuning, epochs=7)
    assert best.refit_schedule(1) == replace(best.fine_tuning, epochs=1, warmup_epochs=0)


def test_the_launchpad_may_leave_settings_out() -> None:
    received = []

    @dg.op
    def train(config: TrainingConfig) -> None:
        received.append(config)

    @dg.job
    def training() -> None:
        train()

    training.execute_in_process(run_config={"ops": {"train": {"config": {"effort": "good", "top_blocks": 7}}}})
    assert received[0].resolved().model_dump().items() >= {**DEFAULTS["good"], "top_blocks": 7}.items()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "the head on 1,799 images"),
        ({"effort": "good"}, "the head and 6 blocks on 1,799 images, in 8 epochs at most"),
        ({"effort": "best"}, "the head and 12 blocks on 1,799 images, in 12 epochs at most, then again on 2,185"),
    ],
)
def test_a_training_announces_what_it_trains(settings: dict[str, Any], what: str) -> None:
    assert announcement(plan(settings), 1799, 386) == f"trains {what}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "10 s"), (38, "40 s"), (58, "1 min"), (89, "1 min"), (250, "4 min"), (5399, "90 min"), (9000, "2 h")],
)
def test_a_duration_is_rounded_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == f"about {words}"
