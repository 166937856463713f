"""What a training needs of a framework's network."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from image_assets.models.embeddings import Activations
from image_assets.models.epochs import Batch, Network, State
from image_assets.models.training_plan import OutputLocations, Schedule

if TYPE_CHECKING:
    import onnx


class Classifier(Network, Protocol):
    """A network that can be frozen up to a block and logged to MLflow."""

    framework: str
    precision: str

    def freeze(self, blocks: int | None, schedule: Schedule) -> Activations:
        """Freeze the first blocks, or (None) everything but the head; the frozen part, whose output is trained on."""
        ...

    def set_label_weights(self, weights: np.ndarray) -> None:
        """Set the weight of each label's images in the loss: (labels,)."""
        ...

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """The head's kernel (features, labels) and bias (labels,), float64."""
        ...

    def set_head(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Replace the head's kernel and bias."""
        ...

    def embeddings(self, batch: Batch) -> np.ndarray:
        """The inputs of the head for a batch: (n, features) float32."""
        ...

    def backbone_weights(self) -> State:
        """Copies of the weights of the whole backbone by name."""
        ...

    def log(self, locations: OutputLocations) -> str:
        """Log the model in its own flavor; its URI."""
        ...

    def export(self) -> "tuple[onnx.ModelProto, Callable[[np.ndarray], np.ndarray]]":
        """The whole network as ONNX, from pixels to probabilities, and the network itself on the CPU."""
        ...
