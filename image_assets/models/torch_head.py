"""The head of the PyTorch network, fitted to embeddings by all Horovod ranks together."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.embedded_images import EmbeddedImages, Fit, Head, check_figures, usable_deviation

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

# Chosen by five-fold cross-validation on photographs; strong, as the head has 1280 features and few images.
DROPOUT, LABEL_SMOOTHING, WEIGHT_DECAY = 0.5, 0.1, 5.0


def fit_head(
    known: EmbeddedImages,
    unseen: EmbeddedImages,
    *,
    labels: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> Fit:
    """The head of the epoch with the best validation accuracy; `report` gets each epoch's figures at once."""
    import horovod.torch as hvd
    import torch

    mean, deviation = _mean_and_deviation(known.embeddings)
    known, unseen = known.standardised(mean, deviation), unseen.standardised(mean, deviation)
    steps = int(hvd.allreduce(torch.tensor(math.ceil(len(known) / batch_size)), op=hvd.Max))
    torch.manual_seed(seed + hvd.rank())  # each rank drops out other features
    dense, optimizer = _head_and_optimizer(known.embeddings.shape[1], labels, learning_rate * hvd.size())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    best, head, history = (-math.inf, -math.inf), None, []
    for epoch in range(1, epochs + 1):
        rows = known.batches(steps, batch_size, (seed, hvd.rank(), epoch))
        loss, accuracy = _averages([_step(dense, optimizer, schedule, known, batch) for batch in rows])
        validation_loss, validation_accuracy = _averages([_judged(dense, unseen)])
        figures = {"epoch": float(epoch), "loss": loss, "accuracy": accuracy}
        figures |= {"validation_loss": validation_loss, "validation_accuracy": validation_accuracy}
        check_figures(figures, learning_rate)
        history.append(figures)
        report(figures)
        # The figures are the same on all ranks, and so is the choice.
        if (validation_accuracy, -validation_loss) > best:
            best = (validation_accuracy, -validation_loss)
            head = Head(dense.weight.detach().numpy().T.copy(), dense.bias.detach().numpy().copy())
    assert head is not None, "at least one epoch"
    return Fit(head.on_raw_embeddings(mean, deviation), tuple(history), steps)


def _mean_and_deviation(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature, over the images of all ranks."""
    import horovod.torch as hvd
    import torch

    def total(of: np.ndarray) -> np.ndarray:
        return hvd.allreduce(torch.from_numpy(np.asarray(of, np.float64)), op=hvd.Sum).numpy()

    count = total(np.array([len(embeddings)]))
    mean = total(embeddings.sum(axis=0, dtype=np.float64)) / count
    variance = total(((embeddings - mean) ** 2).sum(axis=0)) / count
    return mean, usable_deviation(variance, mean)


def _head_and_optimizer(features: int, labels: int, learning_rate: float) -> tuple["nn.Linear", "optim.Optimizer"]:
    import horovod.torch as hvd
    import torch

    head = torch.nn.Linear(features, labels)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": WEIGHT_DECAY}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=head.named_parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    hvd.broadcast_parameters(head.state_dict(), root_rank=0)
    return head, optimizer


def _step(
    head: "nn.Linear",
    optimizer: "optim.Optimizer",
    schedule: "optim.lr_scheduler.LRScheduler",
    known: EmbeddedImages,
    batch: np.ndarray,
) -> "Tensor":
    """Loss, correct answers and images of one step of training, the first two summed."""
    import torch
    from torch.nn import functional

    label_indexes = torch.from_numpy(known.label_indexes[batch])
    logits = head(functional.dropout(torch.from_numpy(known.embeddings[batch]), DROPOUT))
    loss = functional.cross_entropy(logits, label_indexes, label_smoothing=LABEL_SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    return _sums(loss * len(batch), logits, label_indexes)


def _judged(head: "nn.Linear", unseen: EmbeddedImages) -> "Tensor":
    """Loss, correct answers and images of a validation shard, the first two summed."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        logits, label_indexes = head(torch.from_numpy(unseen.embeddings)), torch.from_numpy(unseen.label_indexes)
        return _sums(functional.cross_entropy(logits, label_indexes, reduction="sum"), logits, label_indexes)


def _sums(loss: "Tensor", logits: "Tensor", label_indexes: "Tensor") -> "Tensor":
    import torch

    correct = (logits.argmax(1) == label_indexes).sum()
    return torch.tensor([loss.item(), correct.item(), len(label_indexes)], dtype=torch.float64)


def _averages(sums: list["Tensor"]) -> tuple[float, float]:
    """Loss and accuracy, averaged over the images of all ranks."""
    import horovod.torch as hvd
    import torch

    loss, correct, count = hvd.allreduce(torch.stack(sums).sum(dim=0), op=hvd.Sum).tolist()
    return loss / count, correct / count
