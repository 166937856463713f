"""What each `effort` of training means in detailed settings, and about how long it takes."""

import os
from typing import Any, Literal

from image_assets.models.backbones import CURRENT_BACKBONE, LARGER_BACKBONE
from image_assets.models.frameworks import Framework
from image_assets.models.training_plan import TrainingPlan

START_SECONDS = 18.0  # a head whose embeddings are stored: imports, the fit, logging
Effort = Literal["quick", "good", "best"]

# The defaults of settings that a training does not set itself. Those of `quick` other than `trainable` apply if
# somebody sets `trainable` alone, and are the defaults of releases without the setting.
DEFAULTS: dict[Effort, dict[str, Any]] = {  # Any: settings are of several types
    "quick": {
        "backbone": CURRENT_BACKBONE.name,
        "trainable": "head",
        "top_blocks": 8,
        "augmentation": False,
        "fine_tuning_epochs": 8,
        "fine_tuning_learning_rate": 1e-4,
        "averaged_epochs": 1,
    },
    "good": {
        "backbone": CURRENT_BACKBONE.name,
        "trainable": "top_blocks",
        "top_blocks": 6,
        "augmentation": True,
        "fine_tuning_epochs": 8,
        "fine_tuning_learning_rate": 2.5e-4,
        "averaged_epochs": 4,
    },
    "best": {
        "backbone": LARGER_BACKBONE.name,
        "trainable": "top_blocks",
        "top_blocks": 12,
        "augmentation": True,
        "fine_tuning_epochs": 12,
        "fine_tuning_learning_rate": 2.5e-4,
        "averaged_epochs": 6,
    },
}


def defaults_of(name: str) -> str:
    """The default of a setting for each effort, as a sentence."""
    first, *others = DEFAULTS
    values = {effort: str(DEFAULTS[effort][name]).lower() for effort in DEFAULTS}
    rest = ", ".join(f"{values[effort]} with `{effort}`" for effort in others)
    return f"Default: {values[first]}, {rest}."


def expected_seconds(
    framework: Framework, plan: TrainingPlan, training_images: int, validation_images: int, *, embedded: bool = False
) -> float:
    """About how long a training takes on this machine's processors, from rates that were measured on two cores.

    Args:
        framework: What it trains in.
        plan: Its settings.
        training_images: The number of images that it trains on.
        validation_images: The number of those that it is judged by.
        embedded: Whether `image_embeddings` has embeddings by its backbone.
    """
    cores = os.cpu_count() or 1
    images = training_images + validation_images
    # Of blocks that are trained, an image takes a pass forwards and one backwards; of frozen ones, only the former.
    trained_share = 1 - plan.frozen_blocks / plan.architecture.blocks
    frozen = (1 - trained_share) / framework.embedded_per_core_second
    trained = trained_share / framework.trained_per_core_second
    seconds = 0.0 if embedded else images / framework.embedded_per_core_second
    if plan.trainable != "head":
        # Frozen blocks compute every view once: the image as it is, or crops of it.
        views = (
            min(plan.augmented_views or plan.fine_tuning.epochs, plan.fine_tuning.epochs) if plan.augmentation else 1
        )
        seconds += (training_images * views + validation_images) * frozen
        seconds += training_images * trained * plan.fine_tuning.epochs
        if plan.refit:
            again = training_images if plan.augmentation and not plan.augmented_views else 0  # views are kept
            seconds += (validation_images + again) * views * frozen + images * plan.fine_tuning.epochs * trained
    return START_SECONDS + seconds * plan.architecture.cost / cores


def announcement(plan: TrainingPlan, training_images: int, validation_images: int) -> str:
    """What a training does, in one line."""
    blocks = plan.architecture.blocks - plan.frozen_blocks
    if not blocks:
        return f"trains the head on {training_images:,} images"
    epochs = plan.fine_tuning.epochs
    again = f", then again on {training_images + validation_images:,}" if plan.refit else ""
    return f"trains the head and {blocks} blocks on {training_images:,} images, in {epochs} epochs at most{again}"


def duration(seconds: float) -> str:
    """Some seconds as a person says them: `about 40 s`, `about 4 min`, `about 2 h`."""
    if seconds < 55:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60)):.0f} min"
    return f"about {seconds / 3600:.0f} h"
