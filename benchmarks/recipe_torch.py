"""The common recipe's training in PyTorch: the frozen base sees every image in every epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import cast

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks.recipe_training import (
    BATCH_SIZE,
    EPOCHS,
    LEARNING_RATE,
    MOMENTUM,
    SIDE_PIXELS,
    EpochClock,
    cache_in,
    labels_in,
    transform,
    weights_file,
)
from benchmarks.task import read_task

SHAPE = (3, SIDE_PIXELS, SIDE_PIXELS)
SCALED = Compose(
    [ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)  # mean and standard deviation of ImageNet


def preprocessed(image: Image.Image) -> np.ndarray:
    """Pixels normalized as the weights expect, channels first: float32 (3, 224, 224)."""
    return cast("torch.Tensor", SCALED(image)).numpy()


def build_model(labels: int) -> torchvision.models.MobileNetV2:
    """The frozen base and one dense layer."""
    file = weights_file("torch")
    model = torchvision.models.mobilenet_v2(weights=None if file else "IMAGENET1K_V1")
    if file:
        model.load_state_dict(
            torch.load(file, weights_only=True), strict=False
        )  # the file has no weights of the classifier
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier[1] = torch.nn.Linear(model.last_channel, labels)
    return model


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[dict], steps: int) -> None:
    """One epoch of training."""
    model.train()
    for rows in islice(batches, steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(rows["features"]), rows["label_index"])
        loss.backward()
        optimizer.step()


def accuracy(model: torch.nn.Module, batches: Iterator[dict], steps: int) -> float:
    """The share of images with a correct prediction."""
    model.eval()
    correct = images = 0
    with torch.no_grad():
        for rows in islice(batches, steps):
            correct += int((model(rows["features"]).argmax(1) == rows["label_index"]).sum())
            images += len(rows["label_index"])
    return correct / images


def main() -> None:
    """Train."""
    task = read_task()
    training, validation = cache_in(task.source, "training"), cache_in(task.source, "validation")
    labels = labels_in(training)
    settings = {"batch_size": BATCH_SIZE, "transform_spec": transform(preprocessed, SHAPE)}
    clock = EpochClock()
    model = build_model(labels)
    optimizer = torch.optim.SGD(model.classifier[1].parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    with (
        training.converter().make_torch_dataloader(**settings) as known,
        validation.converter().make_torch_dataloader(**settings) as unseen,
    ):
        known_batches, unseen_batches = iter(known), iter(unseen)
        for _ in range(EPOCHS):
            train(model, optimizer, known_batches, max(1, training.rows // BATCH_SIZE))
            clock.tell(accuracy(model, unseen_batches, max(1, validation.rows // BATCH_SIZE)))
    clock.answer()


if __name__ == "__main__":
    main()
