"""What ranks do in tests: train, and compare their averages with a reference of one process."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from image_assets.models.backbone_trials import Trial, try_backbone
from image_assets.models.backbones import BACKBONES
from image_assets.models.epochs import Batch
from image_assets.models.training_plan import OutputLocations, TrainingPlan, TrainingResult


class Alone:
    """The only rank."""

    rank, size, local_rank = 0, 1, 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, np.float64)

    def averaged(self, gradients: Sequence[Any]) -> list[Any]:
        return list(gradients)


def shrink_backbones(side_pixels: int = 64) -> None:
    """Let the backbones of this process take smaller images: at 224 pixels, a pass takes ten times as long."""
    BACKBONES.update({name: replace(row, side_pixels=side_pixels) for name, row in BACKBONES.items()})


def try_on_small_images(framework: str, caches: Any, plan: TrainingPlan, places: OutputLocations) -> Trial:
    """A trial of the plan's backbone."""
    shrink_backbones()
    return try_backbone(framework, caches, plan, places)


def train_and_average(
    framework: str, training: Any, validation: Any, plan: TrainingPlan, places: OutputLocations
) -> tuple[TrainingResult, float]:
    """Train; the greatest difference between this rank's weights and those of one process with the same images."""
    module = import_module(f"image_assets.models.{framework}_training")
    collectives, made = module.COLLECTIVES, []
    connect = collectives[plan.distributor]

    def connect_once() -> Any:
        made.append(connect())
        return made[0]

    module.COLLECTIVES = {plan.distributor: connect_once}
    trained = module.train(training, validation, plan, places)
    rank = made[0].rank
    model, _ = module.build_model(plan.labels, plan.architecture, "none", plan.seed)
    inputs = np.random.default_rng(0).normal(size=(8, 1280)).astype(np.float32)
    batch = Batch(inputs, np.arange(8) % plan.labels)
    mine = Batch(batch.inputs[rank::2], batch.label_indexes[rank::2])
    together = weights_after_steps(module, framework, model, plan, made[0], mine)
    alone = weights_after_steps(module, framework, model, plan, Alone(), batch)
    return trained, max(float(np.abs(together[name] - alone[name]).max()) for name in alone)


def weights_after_steps(
    module: Any, framework: str, model: Any, plan: TrainingPlan, collective: Any, batch: Batch
) -> Any:
    """The head's weights after three steps from zero on one batch, without chance in them."""
    plan = replace(plan, head=replace(plan.head, dropout=0.0))
    network = {"torch": "TorchNetwork", "tensorflow": "TensorflowNetwork"}[framework]
    network = getattr(module, network)(model, plan, collective)
    network.freeze(None, plan.head)
    network.set_head(*map(np.zeros_like, network.head()))
    for _ in range(3):
        network.step(batch, 0.01, 0)
    return {name.rpartition("/")[2].rpartition(".")[2]: of for name, of in network.weights().items()}
