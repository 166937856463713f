"""The frameworks that a classifier can be trained in: one row each, with everything that differs between them.

Four files belong to a row, named after it. `<name>_training.py` trains on the ranks (`build_model`, `build_network`,
`train`) and exports networks (`export_backbone`, `export_network`). `<name>_collectives.py` exchanges values between
ranks (`COLLECTIVES`). `<name>_backbones.py` builds the backbones that it has (`build_backbone`). `<name>_network.py`,
which is also stored beside every version, loads a trained network and embeds with it.
`tests/image_assets/models/test_frameworks.py` lists every function that they must have.
"""

import os
from collections.abc import Callable
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
    # Images a second on one core of a 2.6 GHz server, through the whole network of `CURRENT_BACKBONE`.
    embedded_per_core_second: float
    trained_per_core_second: float  # forwards and backwards
    downloads: Callable[[], Path]  # the folder to which it downloads weights

    @property
    def asset(self) -> str:
        """The name of the asset that trains in it."""
        return f"{self.name}_model"

    @property
    def training(self) -> ModuleType:
        """The module whose `train` runs on each rank."""
        return import_module(f"image_assets.models.{self.name}_training")

    @property
    def rank_imports(self) -> tuple[str, ...]:
        """The modules that take a rank longest to import."""
        return (self.training.__name__, *self.packages, f"horovod.{self.name}", "petastorm.spark", "mlflow")

    @property
    def network(self) -> ModuleType:
        """The module that loads a trained network; see `image_assets.models.engines.NetworkCode`."""
        return import_module(f"image_assets.models.{self.name}_network")

    @property
    def network_file(self) -> Path:
        """The same module as the file that is stored beside versions."""
        return Path(__file__).with_name(f"{self.name}_network.py")


def keras_downloads() -> Path:
    """Where Keras stores what it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def torch_downloads() -> Path:
    """Where PyTorch stores what it downloads."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_HOME") or Path(caches) / "torch") / "hub" / "checkpoints"


TENSORFLOW = Framework(
    name="tensorflow",
    title="TensorFlow",
    kind="tensorflow",
    packages=("tensorflow", "keras"),
    distributors=("horovod", "tensorflow_distributor"),
    gpu_program="import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))",
    embedded_per_core_second=40,
    trained_per_core_second=25,
    downloads=keras_downloads,
)
TORCH = Framework(
    name="torch",
    title="PyTorch",
    kind="pytorch",
    packages=("torch", "torchvision"),
    distributors=("horovod", "torch_distributor"),
    gpu_program="import torch; print(torch.cuda.device_count())",
    embedded_per_core_second=37,
    trained_per_core_second=17,
    downloads=torch_downloads,
)
FRAMEWORKS = {framework.name: framework for framework in (TENSORFLOW, TORCH)}


def gpu_program(name: str) -> str:
    """The GPU program of a framework; it prints 0 if the name is unknown, as in versions that were not trained here."""
    return FRAMEWORKS[name].gpu_program if name in FRAMEWORKS else "print(0)"
