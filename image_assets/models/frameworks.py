"""The frameworks that a classifier can be trained in: one row for each, with everything in which they differ.

Two files belong to a row, named after it. `<name>_training.py` trains on the ranks (`build_model`, `build_network`,
`train`, `COLLECTIVES`) and exports backbones (`export_backbone`). `<name>_network.py`, which is also stored beside
every version, loads, embeds with and exports a trained network. `tests/image_assets/models/test_frameworks.py` lists
every function that they must have.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from resources.processes.rank_process import Distributor


@dataclass(frozen=True)
class Framework:
    """A deep-learning framework. Nothing of it is imported before it is used."""

    name: str  # of its Python package; tables and the version tag `framework` record it
    title: str
    kind: str  # the icon of its asset in Dagster's UI
    packages: tuple[str, ...]  # needed to load a network; versions pin them
    distributors: tuple[Distributor, ...]  # what can start the processes of a training
    gpu_program: str  # Python that prints how many GPUs the framework finds

    @property
    def asset(self) -> str:
        """The name of the asset that trains in it."""
        return f"{self.name}_model"

    @property
    def training(self) -> ModuleType:
        """The module whose `train` runs on each rank."""
        return import_module(f"image_assets.models.{self.name}_training")

    @property
    def network(self) -> ModuleType:
        """The module that loads a trained network; see `image_assets.models.engines.NetworkCode`."""
        return import_module(f"image_assets.models.{self.name}_network")

    @property
    def network_file(self) -> Path:
        """The same module as the file that is stored beside versions."""
        return Path(__file__).with_name(f"{self.name}_network.py")


TENSORFLOW = Framework(
    name="tensorflow",
    title="TensorFlow",
    kind="tensorflow",
    packages=("tensorflow", "keras"),
    distributors=("horovod", "tensorflow_distributor"),
    gpu_program="import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))",
)
TORCH = Framework(
    name="torch",
    title="PyTorch",
    kind="pytorch",
    packages=("torch", "torchvision"),
    distributors=("horovod", "torch_distributor"),
    gpu_program="import torch; print(torch.cuda.device_count())",
)
FRAMEWORKS = {framework.name: framework for framework in (TENSORFLOW, TORCH)}


def gpu_program(name: str) -> str:
    """The GPU program of a framework; it prints 0 if the name is unknown, as in versions that were not trained here."""
    return FRAMEWORKS[name].gpu_program if name in FRAMEWORKS else "print(0)"
