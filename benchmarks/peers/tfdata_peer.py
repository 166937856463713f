"""tf.data: files decoded and resized with TensorFlow, pixels cached in memory."""

from pathlib import Path

import tensorflow as tf

from benchmarks.feeding import BATCH_IMAGES, SIDE_PIXELS, feed
from benchmarks.photographs import files_in, number_of
from benchmarks.task import read_task


def to_pixels(file: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels of a photograph: uint8 (224, 224, 3)."""
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    pixels = tf.image.resize(image, (SIDE_PIXELS, SIDE_PIXELS), antialias=True)
    return tf.cast(tf.round(pixels), tf.uint8), number


def main() -> None:
    """Feed batches."""
    task = read_task()
    files = sorted(files_in(Path(task.source)))
    photographs = tf.data.Dataset.from_tensor_slices(([str(file) for file in files], [*map(number_of, files)]))
    images = photographs.map(to_pixels, num_parallel_calls=tf.data.AUTOTUNE).cache()
    batches = images.batch(BATCH_IMAGES).prefetch(tf.data.AUTOTUNE)
    feed(batches.as_numpy_iterator, task.target)


if __name__ == "__main__":
    main()
