"""Training on a device whose memory Horovod, built without CUDA, cannot read; a stand-in, because no GPU is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.image_assets.conftest import FINE_TUNING, PLAN, in_a_process
from tests.support.rank_programs import shrink_backbones

pytestmark = pytest.mark.training
IMAGES = 6
Trained = tuple[set[str], set[str], str, list[dict[str, float]]]


@dataclass
class Boundary:
    """Horovod's compiled library, which notes the device of every tensor that it is given."""

    library: Any
    devices: set[str]

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)

        def noted(*args: Any) -> Any:
            import torch

            values = [value for arg in args for value in (arg if isinstance(arg, list | tuple) else [arg])]
            found = {value.device.type for value in values if isinstance(value, torch.Tensor)}
            self.devices |= found
            assert found <= {"cpu"}, name  # with a GPU's memory, it could crash this process
            return function(*args)

        return noted


@contextmanager
def at_the_boundary() -> Iterator[set[str]]:
    """The devices of the tensors that reach Horovod's library within the block."""
    from horovod.torch import mpi_ops

    before, boundary = mpi_ops.mpi_lib, Boundary(mpi_ops.mpi_lib, set())
    mpi_ops.mpi_lib = boundary
    try:
        yield boundary.devices
    finally:
        mpi_ops.mpi_lib = before


def both(folder: Path) -> list[Trained]:
    """The same training on the device and on the CPU, in one process: torch asks for its devices only once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    shrink_backbones()
    return [trained(device, folder / str(number)) for number, device in enumerate(("stand_in:0", "cpu"))]


def trained(device: str, folder: Path) -> Trained:
    """A training of two epochs: devices that reach Horovod, devices of the gradients, weights, metrics."""
    import torch

    from image_assets.models.embeddings import PrecomputedInputs
    from image_assets.models.epochs import Checkpoints, Phase, run_epochs, state_digest
    from image_assets.models.torch_collectives import HorovodForTorch
    from image_assets.models.torch_training import TorchNetwork, build_model
    from tests.support.stand_in_device import StandInDevice

    torch.set_num_threads(1)
    plan = replace(PLAN, trainable="all", batch_size=3, fine_tuning=replace(FINE_TUNING, warmup_epochs=0))
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *plan.architecture.pixels_shape), np.uint8)
    images = PrecomputedInputs(pixels, np.arange(IMAGES), np.arange(IMAGES) % 2, 2, plan.batch_size, (0, 0))
    with StandInDevice() if device != "cpu" else nullcontext(), at_the_boundary() as devices:
        collective = HorovodForTorch()
        model, _ = build_model(plan.labels, plan.architecture, "none", seed=0)
        network = TorchNetwork(model, plan, collective)
        network.device = torch.device(device)
        network.model.to(network.device, memory_format=torch.channels_last)
        network.set_label_weights(np.ones(plan.labels))
        network.freeze(0, plan.fine_tuning)
        phase = Phase("all", plan.fine_tuning, 0, lambda *_: None)
        progress = run_epochs(
            network, collective, images, images, phase=phase, checkpoints=Checkpoints(str(folder), "0a1b")
        )
        of_gradients = {parameter.grad.device.type for parameter in model.parameters() if parameter.grad is not None}
        return devices, of_gradients, state_digest(network.weights()), progress.history


def test_only_tensors_in_host_memory_reach_horovod_and_the_weights_are_those_of_the_cpu(tmp_path: Path) -> None:
    on_device, on_cpu = in_a_process(both, tmp_path)
    assert on_cpu[:2] == ({"cpu"}, {"cpu"})
    assert on_device[:2] == ({"cpu"}, {"stand_in"})
    assert on_device[2] == on_cpu[2]
    assert [{**epoch, "seconds": 0} for epoch in on_device[3]] == [{**epoch, "seconds": 0} for epoch in on_cpu[3]]
