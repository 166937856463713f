"""A head on a backbone, trained and tried on images that it was not trained on; runs on a rank."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.calibration import log_softmax
from image_assets.models.embeddings import precompute_inputs
from image_assets.models.epochs import gathered
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.rank_training import RankTraining, to_shard
from image_assets.models.training_output import no_report
from image_assets.models.training_plan import OutputLocations, TrainingPlan

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter


@dataclass(frozen=True)
class Trial:
    """What one rank found; the arrays are of the images of all ranks.

    Attributes:
        origin: Where the backbone's weights came from.
        validation_accuracy: Of the head.
        probabilities: Of the tried images, (n, labels) float64.
        label_indexes: Their labels (n,).
        training_seconds: From the built network to the trained head.
        images_per_second: Decoded and embedded by this rank.
        weight_bytes: Of backbone and head.
    """

    origin: str
    validation_accuracy: float
    probabilities: np.ndarray
    label_indexes: np.ndarray
    training_seconds: float
    images_per_second: float
    weight_bytes: int


def try_backbone(
    framework: str,
    caches: "tuple[SparkDatasetConverter, SparkDatasetConverter, SparkDatasetConverter]",
    plan: TrainingPlan,
    locations: OutputLocations,
) -> Trial:
    """Train a head on the plan's backbone, together with the other ranks, and predict.

    Args:
        framework: The framework's name.
        caches: Images to train on, images to calibrate on, images to predict.
        plan: The settings of the training.
        locations: Where embeddings are stored and looked for. Nothing is logged.
    """
    module = FRAMEWORKS[framework].training
    collective = module.COLLECTIVES[plan.distributor]()
    network, origin = module.build_network(plan, collective)
    training, validation, tried = (to_shard(cache, plan, collective) for cache in caches)
    started = time.monotonic()
    work = RankTraining(network, collective, training, validation, plan, locations, no_report, origin)
    head = work.train_head()
    training_seconds = time.monotonic() - started
    activations = network.freeze(None, plan.head)
    inputs = precompute_inputs(tried, activations, collective, batch_size=plan.batch_size, seed=plan.seed)
    logits = np.concatenate([network.logits(batch) for batch in inputs])
    everywhere = gathered(collective, np.column_stack([logits, inputs.label_indexes]))
    return Trial(
        origin,
        head.progress.best[0],
        np.exp(log_softmax(everywhere[:, :-1])),
        everywhere[:, -1].astype(int),
        training_seconds,
        work.images_per_second,
        sum(array.nbytes for array in (*network.backbone_weights().values(), *network.weights().values())),
    )
