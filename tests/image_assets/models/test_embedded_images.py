"""Tests of embeddings and heads as plain arrays."""

import numpy as np
import pytest

from image_assets.models.embedded_images import EmbeddedImages, Head, check_figures, usable_deviation


def test_a_small_shard_goes_round_again_and_every_image_is_seen() -> None:
    images = EmbeddedImages(np.zeros((5, 3), np.float32), np.zeros(5, np.int64))

    batches = images.batches(3, 4, (0, 1, 2))

    assert batches.shape == (3, 4)
    assert set(batches.ravel()[:5]) == set(range(5))
    assert (batches == images.batches(3, 4, (0, 1, 2))).all()


def test_order_does_not_depend_on_how_a_shard_was_read() -> None:
    first, second = (np.eye(2, dtype=np.float32)[[row]] for row in (0, 1))
    parts = [(first, np.array([7]), np.array([2])), (second, np.array([8]), np.array([1]))]

    read, read_otherwise = (EmbeddedImages.in_order_of_key(of) for of in (parts, parts[::-1]))

    assert read.label_indexes.tolist() == [8, 7]
    assert (read.embeddings == read_otherwise.embeddings).all()


def test_an_empty_shard_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows: expected at least one"):
        EmbeddedImages.in_order_of_key([])


def test_a_head_on_raw_embeddings_gives_what_it_gives_on_standardised_ones() -> None:
    random = np.random.default_rng(0)
    images = EmbeddedImages(random.normal(3, 2, (10, 4)).astype(np.float32), np.zeros(10, np.int64))
    mean, deviation = images.embeddings.mean(axis=0), images.embeddings.std(axis=0)
    head = Head(random.normal(size=(4, 2)), random.normal(size=2))

    raw = head.on_raw_embeddings(mean, deviation)

    expected = images.standardised(mean, deviation).embeddings @ head.kernel + head.bias
    np.testing.assert_allclose(images.embeddings @ raw.kernel + raw.bias, expected, atol=1e-5)


def test_features_that_do_not_vary_are_not_divided_by_zero() -> None:
    deviation = usable_deviation(np.array([4.0, 0.0, 1e-20]), np.array([1.0, 0.0, 5.0]))

    assert deviation.tolist() == [2.0, 1.0, 1.0]


def test_a_loss_that_is_no_number_is_named_with_the_remedy() -> None:
    figures = {"epoch": 3.0, "loss": float("nan"), "validation_loss": 1.0}

    with pytest.raises(FloatingPointError, match=r"epoch 3 ends with loss nan .* lower learning_rate, which is 7"):
        check_figures(figures, 7)
