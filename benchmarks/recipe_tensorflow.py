"""The common recipe's training in Keras: the frozen base sees every image in every epoch."""

from typing import cast

import keras
import numpy as np
from PIL import Image

from benchmarks.recipe_training import (
    BATCH_SIZE,
    EPOCHS,
    LEARNING_RATE,
    MOMENTUM,
    SIDE_PIXELS,
    EpochClock,
    cache_in,
    labels_in,
    transform,
    weights_file,
)
from benchmarks.task import read_task

SHAPE = (SIDE_PIXELS, SIDE_PIXELS, 3)


def preprocessed(image: Image.Image) -> np.ndarray:
    """Pixels scaled to -1 to 1, as the weights expect: float32 (224, 224, 3)."""
    return cast("np.ndarray", keras.applications.mobilenet_v2.preprocess_input(np.array(image, np.float32)))


def build_model(labels: int) -> keras.Model:
    """The frozen base and one dense layer."""
    base = keras.applications.MobileNetV2(
        input_shape=SHAPE, include_top=False, weights=str(weights_file("tensorflow") or "imagenet")
    )
    base.trainable = False
    pooled = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([base, pooled, keras.layers.Dense(labels, activation="softmax")])
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Train."""
    task = read_task()
    training, validation = cache_in(task.source, "training"), cache_in(task.source, "validation")
    labels = labels_in(training)
    settings = {"batch_size": BATCH_SIZE, "transform_spec": transform(preprocessed, SHAPE)}
    clock = EpochClock()
    model = build_model(labels)
    with (
        training.converter().make_tf_dataset(**settings) as known,
        validation.converter().make_tf_dataset(**settings) as unseen,
    ):
        model.fit(
            known.map(lambda rows: (rows.features, rows.label_index)),
            steps_per_epoch=max(1, training.rows // BATCH_SIZE),
            epochs=EPOCHS,
            validation_data=unseen.map(lambda rows: (rows.features, rows.label_index)),
            validation_steps=max(1, validation.rows // BATCH_SIZE),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: clock.tell(logs["val_accuracy"]))],
            verbose=cast("str", 0),  # Keras also accepts a number, but does not annotate it
        )
    clock.answer()


if __name__ == "__main__":
    main()
