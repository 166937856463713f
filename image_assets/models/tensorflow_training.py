"""The TensorFlow network and its training; everything here runs on a rank."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.backbones import Backbone
from image_assets.models.embedding_networks import EMBEDDING, ExportedBackbone
from image_assets.models.embeddings import Activations
from image_assets.models.epochs import Batch, Collective, State
from image_assets.models.frameworks import TENSORFLOW
from image_assets.models.logged_models import INPUT, OPSET, OUTPUT, log_to_run
from image_assets.models.rank_training import train_on_rank
from image_assets.models.tensorflow_backbones import (
    build_backbone,
    cut_in_two,
    features_of,
    fold_normalization,
    to_embedding,
)
from image_assets.models.tensorflow_collectives import COLLECTIVES
from image_assets.models.tensorflow_network import load_tensorflow
from image_assets.models.training_plan import OutputLocations, Schedule, TrainingPlan, TrainingResult

if TYPE_CHECKING:
    import keras
    import onnx
    import tensorflow as tf
    from petastorm.spark import SparkDatasetConverter


logger = logging.getLogger(__name__)


def build_model(labels: int, backbone: Backbone, weights: str, seed: int) -> tuple["keras.Model", str]:
    """The network, and where the weights of its backbone are from.

    Args:
        labels: How many labels it tells apart.
        backbone: What makes embeddings of images.
        weights: "auto", "imagenet", "none", or a folder with the backbone's weight file.
        seed: Fixes the weights of an untrained backbone.

    Returns:
        A network from pixels (n, side, side, 3) uint8 to probabilities (n, labels) float32, and "folder", "imagenet" or
        "untrained".
    """
    import keras

    keras.utils.set_random_seed(seed)
    features, origin = build_backbone(backbone, weights)
    features.trainable = False
    pixels = keras.Input(backbone.pixels_shape, dtype="uint8", name="pixels")
    own = backbone.implementations[TENSORFLOW.name]
    # One multiplication and addition inside the graph instead of a subtraction and division of colors from 0 to 1.
    scale, offset = 1 / (255 * np.array(own.deviation)), -np.array(own.mean) / np.array(own.deviation)
    # Channels that are alike get a number, because ONNX Runtime takes 1.2 ms longer for an image with a list.
    by, plus = (float(each[0]) if np.ptp(each) == 0 else each.tolist() for each in (scale, offset))
    scaled = keras.layers.Rescaling(by, plus, name="scaled")(pixels)
    embedding = to_embedding(features(scaled, training=False))
    # Zeros: training starts from equal probabilities for all labels, whatever the seed.
    logits = keras.layers.Dense(labels, kernel_initializer="zeros", name="head")(embedding)
    return keras.Model(pixels, keras.layers.Softmax(name="probabilities")(logits), name="image_classifier"), origin


def export_backbone(backbone: Backbone, weights: str) -> ExportedBackbone:
    """The backbone as ONNX, from pixels to embeddings; see `build_model` for the weights."""
    load_tensorflow()
    import keras

    model, origin = build_model(1, backbone, weights, seed=0)
    embedder = keras.Model(model.input, model.get_layer("embedding").output)
    return ExportedBackbone(*export_network(embedder, backbone, EMBEDDING), _arrays(features_of(model).weights), origin)


def export_network(
    network: "keras.Model", backbone: Backbone, output: str = OUTPUT
) -> "tuple[onnx.ModelProto, Callable[[np.ndarray], np.ndarray]]":
    """A network as ONNX, from `pixels` to an output of this name, and the network itself."""
    import tensorflow as tf
    import tf2onnx

    graph = tf.function(lambda pixels: {output: network(pixels, training=False)}, autograph=False)
    exported, _ = tf2onnx.convert.from_function(
        graph, [tf.TensorSpec((None, *backbone.pixels_shape), tf.uint8, name=INPUT)], opset=OPSET
    )
    return exported, lambda pixels: graph(tf.constant(pixels))[output].numpy()


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


def build_network(plan: TrainingPlan, collective: Collective) -> "tuple[TensorflowNetwork, str]":
    """The network on this rank's device, with rank 0's weights, and where its backbone's weights are from."""
    # Only rank 0 reads or downloads weights, and sends them to the others: one download, and equal weights for sure.
    weights = plan.backbone if collective.rank == 0 else "none"
    model, origin = build_model(plan.labels, plan.architecture, weights, plan.seed)
    model.set_weights(collective.broadcast(model.get_weights() if collective.rank == 0 else None))
    return TensorflowNetwork(model, plan, collective), collective.broadcast(origin)


class TensorflowNetwork:
    """The network in two parts: a frozen one, and a trainable one with its optimizer."""

    framework = TENSORFLOW.name

    def __init__(self, model: "keras.Model", plan: TrainingPlan, collective: Collective) -> None:
        import tensorflow as tf

        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        half = plan.precision == "bfloat16" or (plan.precision == "auto" and on_gpu)
        self.device = "gpu" if on_gpu else "cpu"
        self.precision = "bfloat16" if half else "float32"
        self.model = model
        self._plan = plan
        self._collective = collective
        self._label_weights = tf.Variable(tf.ones(plan.labels), trainable=False)
        if half:
            _compute_in(model, "mixed_bfloat16")

    def freeze(self, blocks: int | None, schedule: Schedule) -> Activations:
        """Freeze the first blocks, or (None) everything but the head; the frozen part, whose output is trained on."""
        import keras
        import tensorflow as tf

        self._schedule = schedule
        features_of(self.model).trainable = True
        if blocks is not None and self._plan.calibrated:  # not in trainings that earlier releases recorded
            fold_normalization(features_of(self.model))
        frozen, self._trained = cut_in_two(self.model, self._plan.architecture, blocks)
        self._head = self.model.get_layer("head")
        self._variables = [
            *(self._trained.trainable_variables if self._trained else []),
            *self._head.trainable_variables,
        ]
        # Every step sets its own rate instead of 1e-3. The epsilon is torch's default: both frameworks train alike.
        self._optimizer = keras.optimizers.AdamW(1e-3, weight_decay=schedule.weight_decay, epsilon=1e-8)
        self._optimizer.exclude_from_weight_decay(var_list=[of for of in self._variables if len(of.shape) <= 1])
        self._optimizer.build(self._variables)
        # Without autograph, which would translate Python code that has no loop or condition on tensors, for seconds.
        self._step = tf.function(self._stepped, autograph=False, reduce_retracing=True)
        self._evaluate = tf.function(self._evaluated, autograph=False, reduce_retracing=True)
        if frozen is None:
            return lambda pixels: pixels
        # An explicit signature: otherwise every new batch length would trace another graph.
        graph = tf.function(
            lambda pixels: tf.cast(frozen(pixels, training=False), tf.float32),
            input_signature=[tf.TensorSpec((None, *self._plan.architecture.pixels_shape), tf.uint8)],
            autograph=False,
        )
        return lambda pixels: graph(tf.constant(pixels)).numpy()

    def set_label_weights(self, weights: np.ndarray) -> None:
        """Set the weight of each label's images in the loss: (labels,)."""
        self._label_weights.assign(weights)

    def step(self, batch: Batch, learning_rate: float, seed: int) -> np.ndarray:
        """Update the weights with gradients averaged over all ranks; summed loss, correct predictions, images: (3,)."""
        import tensorflow as tf

        self._optimizer.learning_rate = learning_rate
        return self._step(*map(tf.constant, (batch.inputs, batch.label_indexes, [seed, 0]))).numpy()

    def evaluate(self, batch: Batch) -> np.ndarray:
        """Summed loss, correct predictions and images, (3,), without an update."""
        import tensorflow as tf

        return self._evaluate(tf.constant(batch.inputs), tf.constant(batch.label_indexes)).numpy()

    def embeddings(self, batch: Batch) -> np.ndarray:
        """The inputs of the head for a batch: (n, features) float32."""
        import tensorflow as tf

        return self._embeddings(tf.constant(batch.inputs)).numpy()

    def logits(self, batch: Batch) -> np.ndarray:
        """The outputs of the head for a batch: (n, labels)."""
        import tensorflow as tf

        return self._logits(tf.constant(batch.inputs)).numpy()

    def weights(self) -> State:
        """Copies of the trainable weights by name."""
        return _arrays(self._variables)

    def load_weights(self, weights: State) -> None:
        """Replace the trainable weights."""
        for variable in self._variables:
            variable.assign(weights[variable.path])

    def optimizer_state(self) -> State:
        """Copies of the optimizer's state by name."""
        return _arrays(self._optimizer.variables)

    def load_optimizer_state(self, state: State) -> None:
        """Replace the optimizer's state."""
        for variable in self._optimizer.variables:
            variable.assign(state[variable.path])

    def backbone_weights(self) -> State:
        """Copies of the weights of the whole backbone by name."""
        return _arrays(features_of(self.model).weights)

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """The head's kernel (features, labels) and bias (labels,), float64."""
        kernel, bias = (of.astype(np.float64) for of in self._head.get_weights())
        return kernel, bias

    def set_head(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Replace the head's kernel and bias."""
        self._head.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])

    def log(self, locations: OutputLocations) -> str:
        """Log the model in its own flavor, as a Keras file; the model's URI."""
        _compute_in(self.model, "float32")
        return log_model(
            self.model, self._plan.labels, self._plan.architecture, locations.tracking_uri, locations.mlflow_run_id
        )

    def export(self) -> "tuple[onnx.ModelProto, Callable[[np.ndarray], np.ndarray]]":
        """The whole network as ONNX, from pixels to probabilities, and the network itself."""
        _compute_in(self.model, "float32")
        return export_network(self.model, self._plan.architecture)

    def _stepped(self, inputs: "tf.Tensor", label_indexes: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        smoothing, labels = self._plan.label_smoothing, self._plan.labels
        with tf.GradientTape() as tape:
            logits = self._logits(inputs, seed)
            wanted = tf.one_hot(label_indexes, labels) * (1 - smoothing) + smoothing / labels
            losses = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
            loss = tf.reduce_mean(losses * tf.gather(self._label_weights, label_indexes))
        # Horovod and the tape only handle TensorFlow's variables, which Keras 3 wraps in its own.
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        self._optimizer.apply(self._collective.averaged(gradients), self._variables)
        return _sums(losses, logits, label_indexes)

    def _evaluated(self, inputs: "tf.Tensor", label_indexes: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        logits = self._logits(inputs)
        return _sums(tf.nn.sparse_softmax_cross_entropy_with_logits(label_indexes, logits), logits, label_indexes)

    def _logits(self, inputs: "tf.Tensor", seed: "tf.Tensor | None" = None) -> "tf.Tensor":
        import tensorflow as tf

        embeddings = self._embeddings(inputs)
        if seed is not None and self._schedule.dropout:
            embeddings = tf.nn.experimental.stateless_dropout(embeddings, self._schedule.dropout, seed)
        return self._head(embeddings)

    def _embeddings(self, inputs: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        # training=False: batch normalization keeps ImageNet's statistics, even while its blocks are trained, because
        # statistics of small batches would be noisy.
        return tf.cast(self._trained(inputs, training=False) if self._trained else inputs, tf.float32)


def _compute_in(model: "keras.Model", policy: str) -> None:
    """Set the precision of the backbone's layers; their weights stay float32."""
    import keras

    for layer in features_of(model).layers:
        layer.dtype_policy = keras.DTypePolicy(policy)


def _arrays(variables: "Sequence[keras.Variable]") -> State:
    return {variable.path: np.array(variable) for variable in variables}


def _sums(losses: "tf.Tensor", logits: "tf.Tensor", label_indexes: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == label_indexes, tf.float64))
    loss = tf.reduce_sum(tf.cast(losses, tf.float64))
    return tf.stack([loss, right, tf.cast(tf.size(label_indexes), tf.float64)])


def log_model(model: "keras.Model", labels: int, backbone: Backbone, tracking_uri: str, mlflow_run_id: str) -> str:
    """Log the model in its own flavor, as a Keras file; the model's URI."""
    from mlflow import tensorflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.uint8), (-1, *backbone.pixels_shape), "pixels")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, labels), "probabilities")
    return log_to_run(
        TENSORFLOW.asset,
        tensorflow,
        tracking_uri=tracking_uri,
        mlflow_run_id=mlflow_run_id,
        model=model,
        signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", *TENSORFLOW.packages)],
    )
