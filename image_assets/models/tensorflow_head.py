"""The head of the TensorFlow network, fitted to embeddings by all Horovod ranks together."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from image_assets.models.embedded_images import EmbeddedImages, Fit, Head, check_figures, usable_deviation

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

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
    import horovod.tensorflow as hvd
    import keras
    import tensorflow as tf

    mean, deviation = _mean_and_deviation(known.embeddings)
    known, unseen = known.standardised(mean, deviation), unseen.standardised(mean, deviation)
    steps = int(cast("tf.Tensor", hvd.allreduce(tf.constant(math.ceil(len(known) / batch_size)), op=hvd.Max)))
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate * hvd.size(), epochs * steps)
    dense, optimizer = _head_and_optimizer(known.embeddings.shape[1], labels, schedule)
    dropout = keras.layers.Dropout(DROPOUT, seed=seed + hvd.rank())  # each rank drops out other features
    step = tf.function(lambda embeddings, label_indexes: _step(dense, dropout, optimizer, embeddings, label_indexes))
    best, head, history = (-math.inf, -math.inf), None, []
    for epoch in range(1, epochs + 1):
        rows = known.batches(steps, batch_size, (seed, hvd.rank(), epoch))
        loss, accuracy = _averages([step(known.embeddings[batch], known.label_indexes[batch]) for batch in rows])
        validation_loss, validation_accuracy = _averages([_judged(dense, unseen)])
        figures = {"epoch": float(epoch), "loss": loss, "accuracy": accuracy}
        figures |= {"validation_loss": validation_loss, "validation_accuracy": validation_accuracy}
        check_figures(figures, learning_rate)
        history.append(figures)
        report(figures)
        # The figures are the same on all ranks, and so is the choice.
        if (validation_accuracy, -validation_loss) > best:
            best = (validation_accuracy, -validation_loss)
            head = Head(*(np.array(weights) for weights in dense.get_weights()))
    assert head is not None, "at least one epoch"
    return Fit(head.on_raw_embeddings(mean, deviation), tuple(history), steps)


def _mean_and_deviation(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature, over the images of all ranks."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    def total(of: np.ndarray) -> np.ndarray:
        return cast("tf.Tensor", hvd.allreduce(tf.constant(of, tf.float64), op=hvd.Sum)).numpy()

    count = total(np.array([len(embeddings)]))
    mean = total(embeddings.sum(axis=0, dtype=np.float64)) / count
    variance = total(((embeddings - mean) ** 2).sum(axis=0)) / count
    return mean, usable_deviation(variance, mean)


def _head_and_optimizer(
    features: int, labels: int, schedule: "keras.optimizers.schedules.LearningRateSchedule"
) -> tuple["keras.layers.Dense", "keras.optimizers.Optimizer"]:
    import horovod.tensorflow as hvd
    import keras

    head = keras.layers.Dense(labels, kernel_initializer="zeros")
    head.build((None, features))
    # Keras's annotation forgets that a learning rate may be a schedule.
    optimizer = keras.optimizers.AdamW(cast("float", schedule), weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(head.trainable_variables)
    # Horovod knows TensorFlow's variables, not those that Keras 3 wraps around them.
    hvd.broadcast_variables([variable.value for variable in [*head.variables, *optimizer.variables]], root_rank=0)
    return head, optimizer


def _step(
    head: "keras.layers.Dense",
    dropout: "keras.layers.Dropout",
    optimizer: "keras.optimizers.Optimizer",
    embeddings: "tf.Tensor",
    label_indexes: "tf.Tensor",
) -> "tf.Tensor":
    """Loss, correct answers and images of one step of training, the first two summed."""
    import horovod.tensorflow as hvd
    import keras
    import tensorflow as tf

    with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
        logits = head(dropout(embeddings, training=True))
        smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
        loss = cast("tf.Tensor", smooth(tf.one_hot(label_indexes, logits.shape[1]), logits))
    gradients = tape.gradient(loss, [variable.value for variable in head.trainable_variables])
    optimizer.apply(gradients, head.trainable_variables)
    return _sums(loss * tf.cast(tf.size(label_indexes), loss.dtype), logits, label_indexes)


def _judged(head: "keras.layers.Dense", unseen: EmbeddedImages) -> "tf.Tensor":
    """Loss, correct answers and images of a validation shard, the first two summed."""
    import tensorflow as tf

    logits, label_indexes = head(unseen.embeddings), tf.constant(unseen.label_indexes)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label_indexes, logits)
    return _sums(tf.reduce_sum(losses), logits, label_indexes)


def _sums(loss: "tf.Tensor", logits: "tf.Tensor", label_indexes: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    correct = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == label_indexes, tf.float64))
    return tf.stack([tf.cast(loss, tf.float64), correct, tf.cast(tf.size(label_indexes), tf.float64)])


def _averages(sums: "list[tf.Tensor]") -> tuple[float, float]:
    """Loss and accuracy, averaged over the images of all ranks."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    loss, correct, count = cast("tf.Tensor", hvd.allreduce(tf.add_n(sums), op=hvd.Sum)).numpy().tolist()
    return loss / count, correct / count
