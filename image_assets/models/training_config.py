"""The settings of a training run, the same for every framework."""

from typing import Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from image_assets.models.backbones import (
    BACKBONES,
    IMPLIED_BACKBONE,
    can_be_fine_tuned,
    is_external,
    names_of_backbones,
)
from image_assets.models.efforts import DEFAULTS, Effort, defaults_of
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.training_plan import (
    Distributor,
    HeadFit,
    Precision,
    Schedule,
    Trainable,
    TrainingPlan,
)
from resources.delta.petastorm_caches import PetastormCaches


def distributors_by_framework() -> str:
    """The distributors that each framework can use, as a sentence."""
    choices = (f"{of.title}: {' or '.join(f'`{name}`' for name in of.distributors)}" for of in FRAMEWORKS.values())
    return f"{'; '.join(choices)}."


class TrainingConfig(dg.Config):
    """The settings of a training run, the same for every framework."""

    model_config = ConfigDict(allow_inf_nan=False)

    backbone: str = Field(
        default="auto",
        description="The pretrained network below the head: "
        f"{', '.join(f'`{name}`' for name in BACKBONES)}; or, to train only a head on it, `timm:<name>` for a network "
        f"of the package timm, or `onnx:<file>`. `auto`: what the effort says. {defaults_of('backbone')}",
    )
    effort: Effort = Field(
        default="quick",
        description="How long to train for a better model. `quick`: only the last layer, in closed form. `good`: also "
        "the backbone's last blocks, for some minutes. `best`: more of them, for longer. Sets the defaults of the "
        "settings that you leave unset.",
    )
    # Dagster has no optional `Literal`, so that this one has a value for "not set".
    trainable: Literal["auto", Trainable] = Field(
        default="auto",
        description="What to train. `head`: only the last layer, on embeddings that are computed once. `top_blocks`: "
        "the head, then also the backbone's last blocks. `all`: the head, then the whole network. "
        f"`auto`: what the effort says. {defaults_of('trainable')}",
    )
    top_blocks: int | None = Field(
        default=None,
        gt=0,
        description="How many of the backbone's blocks to train, fewer than it has "
        f"({', '.join(f'{of.name}: {of.blocks}' for of in BACKBONES.values())}). {defaults_of('top_blocks')}",
    )
    augmentation: bool | None = Field(
        default=None,
        description="Randomly crop and mirror images in each epoch of fine-tuning; slower. "
        f"{defaults_of('augmentation')}",
    )
    augmented_views: int = Field(
        default=0,
        ge=0,
        description="How many augmented views of each image to compute and store; later epochs use them again, which "
        "takes less time. 0: another one in each epoch, stored nowhere.",
    )
    head_fit: HeadFit = Field(
        default="closed_form",
        description="How the head is trained. `closed_form`: ridge regression with a strength from cross-validation, "
        "and calibrated probabilities. `epochs`: by gradient descent, as in earlier releases, without calibration.",
    )
    refit: bool | None = Field(
        default=None,
        description="After validation, train once more, on training and validation images together: fit a head in "
        "closed form again, or fine-tune again for as many epochs as were best. Default: true for heads in closed "
        "form, and with `best`.",
    )
    epochs: int = Field(
        default=30, gt=0, description="Maximum number of passes over the embeddings, if `head_fit` is `epochs`."
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="Learning rate of the head for one process, if `head_fit` is `epochs`; multiplied by the number of "
        "processes.",
    )
    weight_decay: float = Field(
        default=5.0, ge=0, description="Weight decay of AdamW for the head, if `head_fit` is `epochs`."
    )
    dropout: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Share of an embedding's features dropped in each step, if `head_fit` is `epochs`.",
    )
    fine_tuning_epochs: int | None = Field(
        default=None,
        gt=0,
        description=f"Maximum number of passes over the images in fine-tuning. {defaults_of('fine_tuning_epochs')}",
    )
    fine_tuning_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of fine-tuning for one process; multiplied by the number of processes. "
        f"{defaults_of('fine_tuning_learning_rate')}",
    )
    averaged_epochs: int | None = Field(
        default=None,
        gt=0,
        description="Over how many of its last epochs fine-tuning averages the weights. "
        f"{defaults_of('averaged_epochs')}",
    )
    fine_tuning_weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of AdamW in fine-tuning.")
    fine_tuning_dropout: float = Field(default=0.2, ge=0, lt=1, description="Dropout in fine-tuning.")
    warmup_epochs: int = Field(
        default=1, ge=0, description="Epochs in which the learning rate grows from that of one process to that of all."
    )
    patience: int = Field(default=10, gt=0, description="Stop after this many epochs without improvement.")
    batch_size: int = Field(default=32, gt=0, description="Images per step and process.")
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Probability spread evenly over all labels. No effect on a head in closed form.",
    )
    class_weights: bool = Field(
        default=True, description="Weight images of rare labels more than those of frequent ones."
    )
    class_weights_power: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How much more, if `class_weights` is true: an image of a label that is four times as rare counts "
        "twice as much at 0.5, and four times as much at 1, where all labels count the same. With higher values, rare "
        "labels are predicted more often, rightly and wrongly.",
    )
    minimum_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The version abstains below this probability: `label` is null and `abstained` true. By default it "
        "answers for every image.",
    )
    minimum_precision: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For each label, abstain below the lowest probability at or above which this share of its "
        "predictions for validation images is correct, such as 0.95. The version stores the probabilities.",
    )
    precision: Precision = Field(
        default="auto", description="`float32`, `bfloat16`, or `auto`: bfloat16 on GPUs that support it, else float32."
    )
    distributor: Distributor = Field(
        default="horovod",
        description=f"What starts the processes. {distributors_by_framework()}",
    )
    seed: int = Field(default=0, ge=0, description="Seed for shuffling, cropping and dropout.")

    @model_validator(mode="after")
    def _trains_what_the_backbone_has(self) -> "TrainingConfig":
        resolved = self.resolved()
        backbone, trainable = resolved.backbone, resolved.trainable
        if backbone not in BACKBONES and not is_external(backbone):
            raise ValueError(f"backbone is {backbone!r}: expected 'auto', or one of {names_of_backbones()}")
        if trainable == "head":
            return self
        if not can_be_fine_tuned(backbone):
            raise ValueError(
                f"effort is {self.effort!r} and trainable is {trainable!r}, but {backbone} can only be used as it "
                f"is: set trainable to 'head', or choose one of {', '.join(filter(can_be_fine_tuned, BACKBONES))}"
            )
        if trainable != "top_blocks" or self.top_blocks is None:
            return self
        row = BACKBONES[backbone]
        if self.top_blocks >= row.blocks:
            raise ValueError(
                f"top_blocks is {self.top_blocks}: expected fewer than the {row.blocks} blocks of {backbone}; to "
                "train them all, set trainable to 'all'"
            )
        if self.top_blocks < row.levels:
            raise ValueError(
                f"top_blocks is {self.top_blocks}, but {backbone} makes embeddings of its last {row.levels} "
                f"blocks: expected at least {row.levels}, or another backbone, such as {IMPLIED_BACKBONE}"
            )
        return self

    @model_validator(mode="after")
    def _augments_what_it_trains(self) -> "TrainingConfig":
        if self.augmentation and self.resolved().trainable == "head":
            raise ValueError(
                "augmentation is true and trainable is 'head', but the head is trained on embeddings that are computed "
                "once: set effort to 'good', trainable to 'top_blocks' or 'all', or augmentation to false"
            )
        return self

    @model_validator(mode="after")
    def _refits_in_closed_form(self) -> "TrainingConfig":
        if self.refit and self.head_fit != "closed_form":
            raise ValueError(
                f"refit is true and head_fit is {self.head_fit!r}, but refit needs a head in closed form: set head_fit "
                "to 'closed_form', or refit to false"
            )
        return self

    def resolved(self) -> "TrainingConfig":
        """The same settings, with the defaults of `effort` for those that are not set."""
        # A head needs no further effort: it is the same version whichever one was asked for.
        defaults = DEFAULTS["quick" if self.trainable == "head" else self.effort]
        trainable = defaults["trainable"] if self.trainable == "auto" else self.trainable
        refit = self.head_fit == "closed_form" and (trainable == "head" or self.effort == "best")
        defaults = {**defaults, "refit": refit}
        backbone = defaults["backbone"] if self.backbone == "auto" else self.backbone
        if backbone in BACKBONES:
            defaults["top_blocks"] = min(defaults["top_blocks"], BACKBONES[backbone].blocks - 1)
        unset = {name: of for name, of in defaults.items() if getattr(self, name) in (None, "auto")}
        return self.model_copy(update=unset)

    def plan(self, labels: int, weights: str, caches: PetastormCaches) -> TrainingPlan:
        """The settings as ranks receive them.

        Args:
            labels: The number of labels.
            weights: Where the backbone's weights come from, a source of `BackboneWeights`.
            caches: The caches that will be read.
        """
        head = Schedule(
            self.epochs, self.learning_rate, self.warmup_epochs, self.patience, self.weight_decay, self.dropout
        )
        own = self.resolved().model_dump()
        fine_tuning = Schedule(
            own["fine_tuning_epochs"],
            own["fine_tuning_learning_rate"],
            min(self.warmup_epochs, own["fine_tuning_epochs"] - 1),
            self.patience,
            self.fine_tuning_weight_decay,
            self.fine_tuning_dropout,
            own["averaged_epochs"],
        )
        names = ("trainable", "top_blocks", "augmentation", "augmented_views", "batch_size", "label_smoothing")
        names += ("class_weights", "class_weights_power", "head_fit", "refit")
        names += ("minimum_probability", "minimum_precision")
        others = {name: own[name] for name in (*names, "precision", "distributor", "seed")}
        content = {name: getattr(caches, name) for name in ("content", "color", "page", "pixel_limit")}
        return TrainingPlan(
            labels=labels,
            backbone=weights,
            head=head,
            fine_tuning=fine_tuning,
            backbone_name=own["backbone"],
            **content,
            **others,
        )
