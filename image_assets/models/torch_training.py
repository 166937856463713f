"""The PyTorch network and its training; everything here runs on a Horovod rank.

The backbone is frozen, so an image's embedding never changes: each rank embeds its shard once, then the head is
trained on the embeddings.
"""

import logging
import time
from collections import OrderedDict
from copy import deepcopy
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.backbone_weights import impatient_downloads, weights_file
from image_assets.models.decoded_rows import COLUMNS, FIELDS, PIXELS_SHAPE, to_decoded_rows
from image_assets.models.embedded_images import EmbeddedImages
from image_assets.models.epoch_reports import epoch_reporter, no_report
from image_assets.models.run_models import log_to_run
from image_assets.models.torch_head import fit_head
from image_assets.models.trained import Trained

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter
    from torch import nn

EMBEDDING = 1280
WEIGHTS_FILE = "mobilenet_v2_features.pth"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's colors, which the weights expect
READ_BATCH_SIZE = 32
PACKAGES = ("mlflow", "numpy", "torch", "torchvision")

logger = logging.getLogger(__name__)


def build_model(labels: int, backbone: str, seed: int) -> tuple["nn.Sequential", str]:
    """The network and where its backbone is from: "folder", "imagenet" or "untrained".

    It takes uint8 pixels (n, 224, 224, 3) and gives probabilities (n, labels).
    """
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(seed)
    scaled = nn.BatchNorm2d(3, eps=0.0, affine=False)  # in use: minus the mean, over the deviation
    scaled.running_mean, scaled.running_var = torch.tensor(MEAN), torch.tensor(DEVIATION) ** 2
    features = torchvision.models.mobilenet_v2().features
    origin = _load_backbone(features, backbone)
    layers = OrderedDict[str, nn.Module](
        channels_first=torchvision.ops.Permute([0, 3, 1, 2]),
        from_zero_to_one=torchvision.transforms.ConvertImageDtype(torch.float32),
        scaled=scaled,
        features=features,
        pooled=nn.AdaptiveAvgPool2d(1),
        embedding=nn.Flatten(1),
        head=nn.Linear(EMBEDDING, labels),
        probabilities=nn.Softmax(1),
    )
    return nn.Sequential(layers).eval().requires_grad_(False), origin


def train(
    training: "SparkDatasetConverter",
    validation: "SparkDatasetConverter",
    *,
    labels: int,
    backbone: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    tracking_uri: str,
    mlflow_run_id: str,
) -> Trained:
    """Train on this rank's shard, together with the other ranks; rank 0 logs metrics and model to MLflow."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    # Rank 0 alone reads or downloads weights; the others get its.
    model, origin = build_model(labels, backbone if hvd.rank() == 0 else "none", seed)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    origin = hvd.broadcast_object(origin, root_rank=0)
    # Faster on a CPU, and not before, as Horovod wants contiguous tensors. Torch's annotations forget the argument.
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    started = time.monotonic()
    known, unseen = _embedded(model, training), _embedded(model, validation)
    images_per_second = (len(known) + len(unseen)) / (time.monotonic() - started)
    everywhere = hvd.allreduce(torch.tensor(images_per_second), op=hvd.Sum)

    report = no_report
    if hvd.rank() == 0:
        logger.info("torch embedding  %.0f images/s on %s process(es)", everywhere, hvd.size())
        report = epoch_reporter("torch", epochs=epochs, tracking_uri=tracking_uri, mlflow_run_id=mlflow_run_id)
    fit = fit_head(
        known,
        unseen,
        labels=labels,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        report=report,
    )
    weights = {"weight": torch.from_numpy(fit.head.kernel.T), "bias": torch.from_numpy(fit.head.bias)}
    model.get_submodule("head").load_state_dict(weights)
    model_uri = log_model(model, labels, tracking_uri, mlflow_run_id) if hvd.rank() == 0 else None
    hvd.barrier()  # an MLflow that fails on rank 0 fails the training
    return Trained(
        hvd.rank(), hvd.size(), model_uri, origin, fit.history, fit.steps, images_per_second, fit.head.digest()
    )


def _load_backbone(features: "nn.Module", backbone: str) -> str:
    """Put the weights in place; where they are from."""
    import torch
    from torchvision.models import MobileNet_V2_Weights

    if backbone == "none":
        return "untrained"
    if backbone in ("auto", "imagenet"):
        try:
            with impatient_downloads():
                weights = MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            if backbone == "imagenet":
                raise
            logger.warning("torch: no ImageNet weights (%s): the backbone is untrained, expect poor accuracy", error)
            return "untrained"
    else:
        weights = torch.load(weights_file(backbone, WEIGHTS_FILE), weights_only=True)
    prefix = "features."
    features.load_state_dict({key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)})
    return "imagenet" if backbone in ("auto", "imagenet") else "folder"


def _embedded(model: "nn.Sequential", cache: "SparkDatasetConverter") -> EmbeddedImages:
    """This rank's shard of the cache, read once and embedded."""
    import horovod.torch as hvd
    import torch
    from petastorm.pytorch import BatchedDataLoader
    from petastorm.transform import TransformSpec

    device = torch.device("cuda", hvd.local_rank() % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    network = deepcopy(model[: list(model._modules).index("head")]).eval().to(device)
    example = torch.zeros((READ_BATCH_SIZE, *PIXELS_SHAPE), dtype=torch.uint8, device=device)
    # Freezing folds what is constant: three times the speed on a CPU.
    network = torch.jit.freeze(torch.jit.trace(network, example))
    parts = []
    with (
        torch.no_grad(),
        cache.make_torch_dataloader(
            batch_size=READ_BATCH_SIZE,
            num_epochs=1,
            workers_count=torch.get_num_threads(),
            data_loader_fn=BatchedDataLoader,
            cur_shard=hvd.rank(),
            shard_count=hvd.size(),
            shuffle_row_groups=False,
            schema_fields=COLUMNS,
            transform_spec=TransformSpec(to_decoded_rows, edit_fields=FIELDS, removed_fields=["content"]),
        ) as batches,
    ):
        for batch in batches:
            embeddings = network(batch["pixels"].to(device)).cpu().numpy()
            parts.append((embeddings, batch["label_index"].numpy(), batch["key"].numpy()))
    return EmbeddedImages.in_order_of_key(parts)


def log_model(model: "nn.Sequential", labels: int, tracking_uri: str, mlflow_run_id: str) -> str:
    """Log the model in its own flavor, as an exported graph; its URI."""
    import torch
    from mlflow import pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.uint8), (-1, *PIXELS_SHAPE), "pixels")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, labels), "probabilities")
    return log_to_run(
        "torch_model",
        pytorch,
        tracking_uri=tracking_uri,
        mlflow_run_id=mlflow_run_id,
        pytorch_model=model,
        serialization_format="pt2",
        signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
        input_example=torch.zeros((2, *PIXELS_SHAPE), dtype=torch.uint8),  # one image would fix the batch at one
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    )
