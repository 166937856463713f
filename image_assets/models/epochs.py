"""The training loop, its progress and its checkpoints: the same for every framework and distributor."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from image_assets.models.training_plan import Schedule
from resources.files.replacing import replace_file
from resources.progress import ProgressLine

State = dict[str, np.ndarray]
Value = TypeVar("Value")
Figures = dict[str, float]
EVALUATION_BATCH_SIZE = 256
logger = logging.getLogger(__name__)


class Collective(Protocol):
    """Communication between ranks. Every rank must call the same methods in the same order, or all of them hang."""

    rank: int
    size: int
    local_rank: int

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        ...

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every rank; the others' values are ignored."""
        ...

    # Any: the tensors of the framework.
    def averaged(self, gradients: Sequence[Any]) -> list[Any]:
        """Each tensor's average over all ranks."""
        ...


def greatest(collective: Collective, number: int) -> int:
    """The maximum of the ranks' numbers."""
    return int(of_each(collective, number).max())


def of_each(collective: Collective, number: int) -> np.ndarray:
    """The numbers of all ranks: (ranks,)."""
    numbers = np.zeros(collective.size)
    numbers[collective.rank] = number
    return collective.sum(numbers)


def gathered(collective: Collective, rows: np.ndarray) -> np.ndarray:
    """The rows (n, ...) of all ranks one after another, float64, on every rank."""
    ends = np.cumsum(of_each(collective, len(rows))).astype(int)
    everywhere = np.zeros((ends[-1], *rows.shape[1:]))
    everywhere[ends[collective.rank] - len(rows) : ends[collective.rank]] = rows
    return collective.sum(everywhere)


@dataclass(frozen=True)
class Checkpoint:
    """Arrays in named parts, and values that JSON can hold."""

    arrays: State
    values: dict[str, Any]

    def part(self, name: str) -> State:
        """The arrays of one part."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training: one file per phase and per backbone that it started with.

    They hold only the weights that are trained, and with `auto`, an attempt may have ImageNet weights and the next one
    none.

    Attributes:
        folder: The training's own.
        backbone: A hash of what identifies the weights that the backbone had before the training.
    """

    folder: str
    backbone: str

    def save(self, name: str, parts: Mapping[str, State], values: Mapping[str, Any]) -> None:
        """Replace the phase's checkpoint atomically."""
        from safetensors.numpy import save_file

        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{part}/{key}": np.array(array, order="C") for part in parts for key, array in parts[part].items()}
        unfinished = file.with_suffix(".unfinished")
        save_file(arrays, unfinished, metadata={"values": json.dumps(values)})
        replace_file(unfinished, file)

    def load(self, name: str) -> Checkpoint | None:
        """The phase's last checkpoint for the backbone; None if there is none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(name), "numpy") as opened:
                arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
                (values,) = (opened.metadata() or {}).values()  # under whichever name it was saved
                return Checkpoint(arrays, json.loads(values))
        except FileNotFoundError:
            return None
        except SafetensorError as error:  # a disk or a power failure damaged it
            logger.warning("%s cannot be read, so this part of the training starts again: %s", self._file(name), error)
            return None

    def _file(self, name: str) -> Path:
        return Path(self.folder) / f"{name}-{self.backbone[:16]}.safetensors"


def state_digest(weights: State) -> str:
    """SHA-256 of all arrays with their names, dtypes and shapes, whatever their order."""
    total = sha256()
    for name, array in sorted(weights.items()):
        total.update(f"{name} {array.dtype} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Inputs (n, ...) of the trainable part of a network, with their label indexes (n,) int64."""

    inputs: np.ndarray
    label_indexes: np.ndarray


class Source(Protocol):
    """The images of one rank's shard."""

    @property
    def steps(self) -> int:
        """Steps per epoch, equal on every rank."""
        ...

    def batches(self, epoch: int) -> Iterable[Batch]:
        """One batch per step of the epoch."""
        ...


class Network(Protocol):
    """The trainable part of a network, with its optimizer."""

    def step(self, batch: Batch, learning_rate: float, seed: int) -> np.ndarray:
        """Update the weights with gradients averaged over all ranks; summed loss, correct predictions, images: (3,)."""
        ...

    def evaluate(self, batch: Batch) -> np.ndarray:
        """Summed loss, correct predictions and images, (3,), without an update."""
        ...

    def logits(self, batch: Batch) -> np.ndarray:
        """The outputs of the head for a batch: (n, labels)."""
        ...

    def weights(self) -> State:
        """Copies of the trainable weights by name."""
        ...

    def load_weights(self, weights: State) -> None:
        """Replace the trainable weights."""
        ...

    def optimizer_state(self) -> State:
        """Copies of the optimizer's state by name."""
        ...

    def load_optimizer_state(self, state: State) -> None:
        """Replace the optimizer's state."""
        ...


@dataclass
class Progress:
    """Training progress. Identical on every rank, because metrics are averaged across ranks."""

    history: list[Figures] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)  # see `to_score`
    best_epoch: int = 0
    best_weights: State = field(default_factory=dict)
    recent: list[State] = field(default_factory=list)  # the weights after the last `averaged_epochs`

    @property
    def epoch(self) -> int:
        """The last completed epoch; 0 before the first."""
        return len(self.history)


@dataclass(frozen=True)
class Phase:
    """One part of a training; the network decides which weights it changes."""

    name: str
    schedule: Schedule
    seed: int
    report: Callable[[str, int, Figures], None]


def run_epochs(
    network: Network,
    collective: Collective,
    training: Source,
    validation: Iterable[Batch] | None,
    *,
    phase: Phase,
    checkpoints: Checkpoints,
) -> Progress:
    """Train for the scheduled epochs, or until `patience` epochs bring no improvement.

    Resumes after the last epoch of a checkpoint. The network ends with the best epoch's weights, or with the last one's
    if there are no validation images. An epoch's weights are the mean of those after the last `averaged_epochs`, which
    classifies better than any of them: Izmailov et al., Averaging Weights Leads to Wider Optima (2018). Normalization
    layers keep their statistics, so the mean needs no further pass over the images.
    """
    progress = resume(network, collective, checkpoints, phase.name)
    schedule = phase.schedule
    if collective.rank == 0:  # of before an interruption: each attempt has its own MLflow run
        for figures in progress.history:
            phase.report(phase.name, schedule.epochs, figures)
    while progress.epoch < schedule.epochs and progress.epoch - progress.best_epoch < schedule.patience:
        epoch, started = progress.epoch + 1, time.monotonic()
        sums = np.zeros(3)
        for number, batch in enumerate(batches_with_progress(training, epoch, collective)):
            step = (epoch - 1) * training.steps + number
            rate = learning_rate(schedule, step, training.steps, collective.size)
            sums += network.step(batch, rate, to_seed(phase.seed, collective.rank, step))
        figures = {"epoch": float(epoch), **averages(collective, sums, "")}
        trained = network.weights()
        progress.recent = [*progress.recent, trained][-schedule.averaged_epochs :]
        averaged = mean_weights(progress.recent)
        network.load_weights(averaged)
        if validation is not None:
            figures |= evaluated(network, collective, validation, "validation_")
        figures["seconds"] = time.monotonic() - started
        require_finite_loss(figures, schedule.learning_rate)
        progress.history.append(figures)
        score = to_score(figures)
        # Every rank has the same metrics, so all of them choose the same epoch without asking each other.
        if score > progress.best:
            progress.best, progress.best_epoch, progress.best_weights = score, epoch, averaged
        network.load_weights(trained)
        if collective.rank == 0:
            phase.report(phase.name, schedule.epochs, figures)
            save_checkpoint(checkpoints, phase.name, network, progress)
    network.load_weights(progress.best_weights)
    return progress


def mean_weights(states: Sequence[State]) -> State:
    """The mean of each array."""
    return {name: np.mean([state[name] for state in states], axis=0) for name in states[-1]}


def batches_with_progress(training: Source, epoch: int, collective: Collective) -> Iterable[Batch]:
    """An epoch's batches; rank 0 logs progress if the epoch takes long."""
    batches = training.batches(epoch)
    if collective.rank:
        return batches
    return ProgressLine(f"epoch {epoch}:", training.steps, "steps", logger.info, items=batches)


def evaluated(network: Network, collective: Collective, images: Iterable[Batch], prefix: str) -> Figures:
    """Mean loss and accuracy of the network as it is, over the images of all ranks, with a prefix to their names."""
    return averages(collective, sum((network.evaluate(batch) for batch in images), np.zeros(3)), prefix)


def to_score(figures: Figures) -> tuple[float, float]:
    """What makes an epoch the best: accuracy on validation images, then their loss; without them, the last is best."""
    if "validation_loss" not in figures:
        return figures["epoch"], 0.0
    return figures["validation_accuracy"], -figures["validation_loss"]


def averages(collective: Collective, sums: np.ndarray, prefix: str) -> Figures:
    """Mean loss and accuracy over the images of all ranks, with a prefix to their names."""
    loss, right, images = collective.sum(sums).tolist()
    return {f"{prefix}loss": loss / images, f"{prefix}accuracy": right / images}


def learning_rate(schedule: Schedule, step: int, steps: int, size: int) -> float:
    """The step size of one step: scaled by the number of ranks, after a warm-up, then down to 0 along a cosine.

    Goyal et al., Accurate, Large Minibatch SGD (2017), sections 2.1 and 2.2; Loshchilov and Hutter, SGDR (2017).
    """
    # Each step averages over `size` batches, so its gradient is less noisy and may go further.
    top, warmup, total = schedule.learning_rate * size, schedule.warmup_epochs * steps, schedule.epochs * steps
    if step < warmup:
        return schedule.learning_rate + (top - schedule.learning_rate) * (step + 1) / warmup
    return top * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def to_seed(*parts: int) -> int:
    """A seed below 2**31 that depends on every part."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def require_finite_loss(figures: Figures, rate: float) -> None:
    """Raise a FloatingPointError if the loss is infinite or NaN."""
    losses = {name.replace("_", " "): figures[name] for name in ("loss", "validation_loss") if name in figures}
    if not all(map(math.isfinite, losses.values())):
        found = " and ".join(f"{name} {loss}" for name, loss in losses.items())
        raise FloatingPointError(
            f"epoch {figures['epoch']:.0f} ends with {found}: expected finite numbers; lower the learning rate, which "
            f"is {rate}"
        )


def resume(network: Network, collective: Collective, checkpoints: Checkpoints, name: str) -> Progress:
    """The progress in rank 0's checkpoint. Without one, every rank takes rank 0's weights."""
    found = collective.broadcast(checkpoints.load(name) if collective.rank == 0 else None)
    if found is None:
        network.load_weights(collective.broadcast(network.weights() if collective.rank == 0 else None))
        return Progress()
    network.load_weights(found.part("weights"))
    network.load_optimizer_state(found.part("optimizer"))
    values = found.values
    earlier = [found.part(f"earlier_{number}") for number in range(values.get("earlier", 0))]
    return Progress(
        values["history"],
        tuple(values["best"]),
        values["best_epoch"],
        found.part("best_weights"),
        [*earlier, found.part("weights")],
    )


def save_checkpoint(checkpoints: Checkpoints, name: str, network: Network, progress: Progress) -> None:
    """Save the state after a completed epoch."""
    earlier = progress.recent[:-1]
    parts = {
        "weights": network.weights(),
        "optimizer": network.optimizer_state(),
        "best_weights": progress.best_weights,
        **{f"earlier_{number}": weights for number, weights in enumerate(earlier)},
    }
    values = {
        "history": progress.history,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "earlier": len(earlier),
    }
    checkpoints.save(name, parts, values)
