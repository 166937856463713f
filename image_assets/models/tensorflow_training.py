"""The TensorFlow network and its training; everything here runs on a Horovod rank.

The backbone is frozen, so an image's embedding never changes: each rank embeds its shard once, then the head is
trained on the embeddings.
"""

import logging
import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

import numpy as np

from image_assets.models.backbone_weights import impatient_downloads, weights_file
from image_assets.models.decoded_rows import COLUMNS, FIELDS, PIXELS_SHAPE, to_decoded_rows
from image_assets.models.embedded_images import EmbeddedImages
from image_assets.models.epoch_reports import epoch_reporter, no_report
from image_assets.models.run_models import log_to_run
from image_assets.models.tensorflow_head import fit_head
from image_assets.models.trained import Trained

if TYPE_CHECKING:
    import keras
    from petastorm.spark import SparkDatasetConverter

WEIGHTS_FILE = "mobilenet_v2_no_top.weights.h5"
READ_BATCH_SIZE = 32
PACKAGES = ("mlflow", "numpy", "tensorflow", "keras")

logger = logging.getLogger(__name__)


def build_model(labels: int, backbone: str, seed: int) -> tuple["keras.Model", str]:
    """The network and where its backbone is from: "folder", "imagenet" or "untrained".

    It takes uint8 pixels (n, 224, 224, 3) and gives probabilities (n, labels).
    """
    import keras

    keras.utils.set_random_seed(seed)
    features, origin = _backbone(backbone)
    features.trainable = False
    pixels = keras.Input(PIXELS_SHAPE, dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)  # from -1 to 1, as the weights expect
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(features(scaled, training=False))
    logits = keras.layers.Dense(labels, name="head")(embedding)
    return keras.Model(pixels, keras.layers.Softmax(name="probabilities")(logits), name="image_classifier"), origin


def train(
    training: "SparkDatasetConverter",
    validation: "SparkDatasetConverter",
    *,
    labels: int,
    backbone: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    tracking_uri: str,
    mlflow_run_id: str,
) -> Trained:
    """Train on this rank's shard, together with the other ranks; rank 0 logs metrics and model to MLflow."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    # Rank 0 alone reads or downloads weights; the others get its.
    model, origin = build_model(labels, backbone if hvd.rank() == 0 else "none", seed)
    hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)
    origin = hvd.broadcast_object(origin, root_rank=0)

    started = time.monotonic()
    known, unseen = _embedded(model, training), _embedded(model, validation)
    images_per_second = (len(known) + len(unseen)) / (time.monotonic() - started)
    everywhere = hvd.allreduce(tf.constant(images_per_second), op=hvd.Sum)

    report = no_report
    if hvd.rank() == 0:
        logger.info("tensorflow embedding  %.0f images/s on %s process(es)", everywhere, hvd.size())
        report = epoch_reporter("tensorflow", epochs=epochs, tracking_uri=tracking_uri, mlflow_run_id=mlflow_run_id)
    fit = fit_head(
        known,
        unseen,
        labels=labels,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        report=report,
    )
    model.get_layer("head").set_weights([fit.head.kernel, fit.head.bias])
    model_uri = log_model(model, labels, tracking_uri, mlflow_run_id) if hvd.rank() == 0 else None
    hvd.allreduce(tf.constant(0))  # an MLflow that fails on rank 0 fails the training
    return Trained(
        hvd.rank(), hvd.size(), model_uri, origin, fit.history, fit.steps, images_per_second, fit.head.digest()
    )


def _backbone(backbone: str) -> tuple["keras.Model", str]:
    """MobileNetV2 without its top, and where its weights are from."""
    import keras

    if backbone in ("auto", "imagenet"):
        keras.config.disable_interactive_logging()
        try:
            with impatient_downloads():
                return keras.applications.MobileNetV2(input_shape=PIXELS_SHAPE, include_top=False), "imagenet"
        except Exception as error:  # Keras has no narrower type for a download that failed
            if backbone == "imagenet" or "URL fetch failure" not in str(error):
                raise
            logger.warning(
                "tensorflow: no ImageNet weights (%s): the backbone is untrained, expect poor accuracy", error
            )
            backbone = "none"
    weights = None if backbone == "none" else str(weights_file(backbone, WEIGHTS_FILE))
    # The annotation of `weights` in Keras forgets that it may be None.
    network = keras.applications.MobileNetV2(input_shape=PIXELS_SHAPE, include_top=False, weights=cast("str", weights))
    return network, "folder" if weights else "untrained"


def _embedded(model: "keras.Model", cache: "SparkDatasetConverter") -> EmbeddedImages:
    """This rank's shard of the cache, read once and embedded."""
    import horovod.tensorflow as hvd
    import keras
    import tensorflow as tf
    from petastorm.transform import TransformSpec

    network = keras.Model(model.input, model.get_layer("embedding").output)
    # One graph for batches of every length: the last of a shard is short.
    pixels = tf.TensorSpec((None, *PIXELS_SHAPE), tf.uint8)
    embed = tf.function(lambda pixels: network(pixels, training=False), input_signature=[pixels])
    with cache.make_tf_dataset(
        batch_size=READ_BATCH_SIZE,
        num_epochs=1,
        workers_count=int(os.environ.get("OMP_NUM_THREADS", "1")),
        cur_shard=hvd.rank(),
        shard_count=hvd.size(),
        shuffle_row_groups=False,
        schema_fields=COLUMNS,
        transform_spec=TransformSpec(to_decoded_rows, edit_fields=FIELDS, removed_fields=["content"]),
    ) as batches:
        parts = [(embed(of.pixels).numpy(), of.label_index.numpy(), of.key.numpy()) for of in batches]
    return EmbeddedImages.in_order_of_key(parts)


def log_model(model: "keras.Model", labels: int, tracking_uri: str, mlflow_run_id: str) -> str:
    """Log the model in its own flavor, as a Keras file; its URI."""
    from mlflow import tensorflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.uint8), (-1, *PIXELS_SHAPE), "pixels")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, labels), "probabilities")
    return log_to_run(
        "tensorflow_model",
        tensorflow,
        tracking_uri=tracking_uri,
        mlflow_run_id=mlflow_run_id,
        model=model,
        signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    )
