"""The PyTorch network and its training; everything here runs on a rank."""

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.backbones import Backbone
from image_assets.models.embedding_networks import EMBEDDING, ExportedBackbone
from image_assets.models.embeddings import Activations
from image_assets.models.epochs import Batch, Collective, State
from image_assets.models.frameworks import TORCH
from image_assets.models.logged_models import INPUT, OPSET, OUTPUT, log_to_run
from image_assets.models.rank_training import train_on_rank
from image_assets.models.torch_backbones import build_backbone, cut_in_two, fold_normalization
from image_assets.models.torch_collectives import COLLECTIVES
from image_assets.models.training_plan import OutputLocations, Schedule, TrainingPlan, TrainingResult

if TYPE_CHECKING:
    import onnx
    import torch
    from petastorm.spark import SparkDatasetConverter
    from torch import nn

logger = logging.getLogger(__name__)


def build_model(labels: int, backbone: Backbone, weights: str, seed: int) -> tuple["nn.Sequential", str]:
    """The network, and where the weights of its backbone are from.

    Args:
        labels: How many labels it tells apart.
        backbone: What makes embeddings of images.
        weights: "auto", "imagenet", "none", or a folder with the backbone's weight file.
        seed: Fixes the weights of an untrained backbone.

    Returns:
        A network from pixels (n, side, side, 3) uint8 to probabilities (n, labels) float32, and "folder", "imagenet",
        "package", "file" or "untrained".
    """
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(seed)
    own = backbone.implementations[TORCH.name]
    # A batch normalization with fixed statistics: minus the mean, divided by the deviation, inside the exported graph.
    scaled = nn.BatchNorm2d(3, eps=0.0, affine=False)
    scaled.running_mean, scaled.running_var = torch.tensor(own.mean), torch.tensor(own.deviation) ** 2
    parts, origin = build_backbone(backbone, weights)
    head = nn.Linear(backbone.features, labels)
    # Zeros: training starts from equal probabilities for all labels, whatever the seed.
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    layers = OrderedDict[str, nn.Module](
        channels_first=torchvision.ops.Permute([0, 3, 1, 2]),
        from_zero_to_one=torchvision.transforms.ConvertImageDtype(torch.float32),
        scaled=scaled,
    )
    layers |= parts
    layers |= {"head": head, "probabilities": nn.Softmax(1)}
    return nn.Sequential(layers).eval().requires_grad_(False), origin


def export_backbone(backbone: Backbone, weights: str) -> ExportedBackbone:
    """The backbone as ONNX, from pixels to embeddings; see `build_model` for the weights."""
    from torch import nn

    model, origin = build_model(1, backbone, weights, seed=0)
    embedder = nn.Sequential(*list(model.children())[:-2]).eval()  # without head and probabilities
    state = _arrays(model.get_submodule("features").state_dict())
    return ExportedBackbone(*export_network(embedder, backbone, EMBEDDING), state, origin)


def export_network(
    network: "nn.Sequential", backbone: Backbone, output: str = OUTPUT
) -> "tuple[onnx.ModelProto, Callable[[np.ndarray], np.ndarray]]":
    """A network on the CPU as ONNX, from `pixels` to an output of this name, and the network itself."""
    import onnx
    import torch

    example = torch.zeros((2, *backbone.pixels_shape), dtype=torch.uint8)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older of torch's two exporters, which traces the network in 0.3 s: `dynamo=True` takes 9 s for this graph.
        torch.onnx.export(
            network,
            (example,),
            f"{folder}/network.onnx",
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes={INPUT: {0: "images"}, output: {0: "images"}},
            opset_version=OPSET,
            dynamo=False,
        )
        exported = onnx.load(f"{folder}/network.onnx")

    def answer(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return exported, answer


def train(
    training: "SparkDatasetConverter",
    validation: "SparkDatasetConverter",
    plan: TrainingPlan,
    locations: OutputLocations,
) -> TrainingResult:
    """Train on this rank's shard, together with the other ranks; rank 0 logs metrics and model to MLflow."""
    collective = COLLECTIVES[plan.distributor]()
    network, origin = build_network(plan, collective)
    return train_on_rank(network, collective, training, validation, plan, locations, origin)


def build_network(plan: TrainingPlan, collective: Collective) -> "tuple[TorchNetwork, str]":
    """The network on this rank's device, with rank 0's weights, and where its backbone's weights are from."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    # Only rank 0 reads or downloads weights, and sends them to the others: one download, and equal weights for sure.
    weights = plan.backbone if collective.rank == 0 else "none"
    model, origin = build_model(plan.labels, plan.architecture, weights, plan.seed)
    arrays = collective.broadcast(_arrays(model.state_dict()) if collective.rank == 0 else None)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return TorchNetwork(model, plan, collective), collective.broadcast(origin)


class TorchNetwork:
    """The network in two parts: a frozen one, and a trainable one with its optimizer."""

    framework = TORCH.name

    def __init__(self, model: "nn.Sequential", plan: TrainingPlan, collective: Collective) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", collective.local_rank % torch.cuda.device_count()) if on_gpu else "cpu"
        half = plan.precision == "bfloat16" or (plan.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
        self.precision = "bfloat16" if half else "float32"
        # Channels-last is faster on a CPU. Torch's annotations lack the argument.
        self.model = model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._plan = plan
        self._collective = collective
        self._label_weights = torch.ones(plan.labels, device=self.device)

    def freeze(self, blocks: int | None, schedule: Schedule) -> Activations:
        """Freeze the first blocks, or (None) everything but the head; the frozen part, whose output is trained on."""
        self._schedule = schedule
        if blocks is not None and self._plan.calibrated:  # not in trainings that earlier releases recorded
            fold_normalization(self.model.get_submodule("features"))
        frozen, trained = cut_in_two(self.model, blocks)
        self._trained = trained.eval()
        self.model.requires_grad_(False)
        self._trained.requires_grad_(True)
        self.model.get_submodule("head").requires_grad_(True)
        self._build_optimizer()
        return self._frozen(frozen.eval()) if len(frozen) else lambda pixels: pixels

    def set_label_weights(self, weights: np.ndarray) -> None:
        """Set the weight of each label's images in the loss: (labels,)."""
        import torch

        self._label_weights = torch.from_numpy(weights.astype(np.float32)).to(self.device)

    def step(self, batch: Batch, learning_rate: float, seed: int) -> np.ndarray:
        """Update the weights with gradients averaged over all ranks; summed loss, correct predictions, images: (3,)."""
        import torch
        from torch.nn import functional

        torch.manual_seed(seed)  # for dropout
        label_indexes = torch.from_numpy(batch.label_indexes).to(self.device)
        logits = self._logits(batch.inputs, dropout=self._schedule.dropout)
        losses = functional.cross_entropy(
            logits, label_indexes, label_smoothing=self._plan.label_smoothing, reduction="none"
        )
        loss = (losses * self._label_weights[label_indexes]).mean()
        self._optimizer.zero_grad()
        loss.backward()
        parameters = self._parameters()
        gradients = self._collective.averaged([parameter.grad for parameter in parameters.values()])
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return _sums(losses.sum(), logits, label_indexes)

    def evaluate(self, batch: Batch) -> np.ndarray:
        """Summed loss, correct predictions and images, (3,), without an update."""
        import torch
        from torch.nn import functional

        with torch.no_grad():
            label_indexes = torch.from_numpy(batch.label_indexes).to(self.device)
            logits = self._logits(batch.inputs)
            return _sums(functional.cross_entropy(logits, label_indexes, reduction="sum"), logits, label_indexes)

    def embeddings(self, batch: Batch) -> np.ndarray:
        """The inputs of the head for a batch: (n, features) float32."""
        import torch

        with torch.no_grad(), self._autocast():
            return self._trained(torch.from_numpy(np.array(batch.inputs)).to(self.device)).float().cpu().numpy()

    def logits(self, batch: Batch) -> np.ndarray:
        """The outputs of the head for a batch: (n, labels)."""
        import torch

        with torch.no_grad():
            return self._logits(batch.inputs).cpu().numpy()

    def weights(self) -> State:
        """Copies of the trainable weights by name."""
        return _arrays(self._parameters())

    def load_weights(self, weights: State) -> None:
        """Replace the trainable weights."""
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(torch.from_numpy(weights[name]))

    def optimizer_state(self) -> State:
        """Copies of the optimizer's state by name."""
        state = self._optimizer.state_dict()["state"]
        return _arrays({f"{number}/{key}": value for number, of in state.items() for key, value in of.items()})

    def load_optimizer_state(self, state: State) -> None:
        """Replace the optimizer's state."""
        import torch

        found: dict[int, dict[str, torch.Tensor]] = {}
        for name, array in state.items():
            number, key = name.split("/")
            found.setdefault(int(number), {})[key] = torch.from_numpy(array)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": found})

    def backbone_weights(self) -> State:
        """Copies of the weights of the whole backbone by name."""
        state = self.model.get_submodule("features").state_dict()
        neck = dict(self.model.named_children()).get("neck")
        return _arrays(state | (neck.state_dict(prefix="neck.") if neck else {}))

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """The head's kernel (features, labels) and bias (labels,), float64."""
        head = self.model.get_submodule("head")
        kernel, bias = (of.detach().double().cpu().numpy() for of in (head.weight, head.bias))
        return kernel.T, bias

    def set_head(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Replace the head's kernel and bias."""
        import torch

        head = self.model.get_submodule("head")
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.T)))
            head.bias.copy_(torch.from_numpy(bias))

    def log(self, locations: OutputLocations) -> str:
        """Log the model in its own flavor, as an exported graph; the model's URI."""
        return log_model(
            self._on_cpu(), self._plan.labels, self._plan.architecture, locations.tracking_uri, locations.mlflow_run_id
        )

    def export(self) -> "tuple[onnx.ModelProto, Callable[[np.ndarray], np.ndarray]]":
        """The whole network as ONNX, from pixels to probabilities, and the network itself on the CPU."""
        return export_network(self._on_cpu(), self._plan.architecture)

    def _on_cpu(self) -> "nn.Sequential":
        import torch

        return self.model.to("cpu", memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]

    def _frozen(self, layers: "nn.Sequential") -> Activations:
        import torch

        example = torch.zeros((1, *self._plan.architecture.pixels_shape), dtype=torch.uint8, device=self.device)
        with torch.no_grad(), self._autocast():
            # Freezing folds constants, such as batch normalization into convolutions: three times as fast on a CPU.
            # Nothing in the layers depends on the number of images, or is random, which would be all to check.
            network = torch.jit.freeze(torch.jit.trace(layers, example, check_trace=False))

        def activations(pixels: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(np.array(pixels)).to(self.device)).float().cpu().numpy()

        return activations

    def _logits(self, inputs: np.ndarray, dropout: float = 0.0) -> "torch.Tensor":
        import torch
        from torch.nn import functional

        with self._autocast():
            embeddings = self._trained(torch.from_numpy(np.array(inputs)).to(self.device))
            return self.model.get_submodule("head")(functional.dropout(embeddings, dropout)).float()

    def _autocast(self) -> "torch.autocast":
        import torch

        kind = self.device if isinstance(self.device, str) else self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _parameters(self) -> "dict[str, nn.Parameter]":
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _build_optimizer(self) -> None:
        import torch

        parameters = self._parameters()
        decayed = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
        # Biases and normalization have no weight decay: shrinking them does not regularize.
        groups = [
            {"params": decayed, "weight_decay": self._schedule.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups)


def _arrays(tensors: "Mapping[str, torch.Tensor]") -> State:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _sums(loss: "torch.Tensor", logits: "torch.Tensor", label_indexes: "torch.Tensor") -> np.ndarray:
    right = (logits.argmax(1) == label_indexes).sum()
    return np.array([loss.item(), right.item(), len(label_indexes)], np.float64)


def log_model(model: "nn.Sequential", labels: int, backbone: Backbone, tracking_uri: str, mlflow_run_id: str) -> str:
    """Log the model in its own flavor, as an exported graph; the model's URI."""
    import torch
    from mlflow import pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.uint8), (-1, *backbone.pixels_shape), "pixels")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, labels), "probabilities")
    return log_to_run(
        TORCH.asset,
        pytorch,
        tracking_uri=tracking_uri,
        mlflow_run_id=mlflow_run_id,
        pytorch_model=model,
        serialization_format="pt2",
        signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
        input_example=torch.zeros(
            (2, *backbone.pixels_shape), dtype=torch.uint8
        ),  # exporting with one image would fix the batch size at one
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", *TORCH.packages)],
    )
