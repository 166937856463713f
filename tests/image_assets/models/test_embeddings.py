"""What the frozen part of a network makes of images, stored; read through Petastorm, without a framework."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from image_assets.models.embeddings import (
    AugmentedImages,
    AugmentedViews,
    JoinedInputs,
    JoinedViews,
    PrecomputedInputs,
    Standardization,
    StoredEmbeddings,
    precompute_inputs,
    standardization,
    to_stored,
    usable_deviation,
)
from image_assets.models.rank_training import label_weights
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.training_images import DecodedImages, Decoding, Shard, rebatched, shuffle
from tests.image_assets.conftest import red_and_blue, write_cache
from tests.support.embedded import embed
from tests.support.images import png
from tests.support.tables import tables_at

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Alone:
    """The only rank."""

    rank, size, local_rank = 0, 1, 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, np.float64)


def shard(folder: Path, images: list[tuple[bytes, int]], rank: int = 0, size: int = 1) -> Shard:
    cache = folder / "cache"
    return Shard((write_cache(cache, images),), Decoding(224), rank, size, threads=2)


class MeanColors:
    """A frozen network: an image's mean color, and how many images it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.asked += len(pixels)
        return pixels.mean(axis=(1, 2)).astype(np.float32)


def test_only_images_without_a_stored_embedding_are_computed(tmp_path: Path) -> None:
    images, stored = red_and_blue(21), {}
    for number, (content, _) in enumerate(images[:20]):
        stored[sha256(content).hexdigest()] = [float(number), 0.5, 1000.0]
    tables = tables_at(tmp_path / "tables")
    embed(tables, "colors", stored)
    embed(tables, "other", {sha256(images[20][0]).hexdigest(): [1.0, 2.0, 3.0]})
    colors, of_backbone = MeanColors(), StoredEmbeddings(embedding_files(tables), "colors")
    found = precompute_inputs(shard(tmp_path, images), colors, Alone(), batch_size=4, seed=0, stored=of_backbone)
    assert colors.asked == 32  # one image, its batch filled up
    assert found.steps == 6
    ids = sorted(sha256(content).hexdigest() for content, _ in images)
    inputs = found.inputs(np.arange(21))
    assert [row.tolist() for image_id, row in zip(ids, inputs, strict=True) if image_id in stored] == [
        stored[image_id] for image_id in ids if image_id in stored
    ]
    assert inputs.dtype == np.float32


def test_what_float16_cannot_hold_becomes_its_largest_value() -> None:
    stored = np.frombuffer(to_stored(np.array([1e9, -1e9, 0.5])), "<f2")
    assert stored.tolist() == [65504.0, -65504.0, 0.5]


def test_the_same_image_under_two_rows_counts_twice(tmp_path: Path) -> None:
    images = [*red_and_blue(8), *red_and_blue(8)]
    precomputed = precompute_inputs(shard(tmp_path, images), MeanColors(), Alone(), batch_size=4, seed=0)
    assert len(precomputed) == 16
    assert len(precomputed.distinct) == 8
    assert np.bincount(precomputed.label_indexes).tolist() == [8, 8]


def test_an_epoch_shows_every_image_and_a_small_shard_goes_round_again() -> None:
    precomputed = PrecomputedInputs(
        np.arange(5.0)[:, None], np.arange(5), np.arange(5), steps=3, batch_size=4, seed=(0, 1)
    )
    first, again, later = (
        [batch.label_indexes.tolist() for batch in precomputed.batches(epoch)] for epoch in (1, 1, 2)
    )
    assert [len(batch) for batch in first] == [4, 4, 4]
    assert {label for batch in first for label in batch} == set(range(5))
    assert first == again != later
    assert [label for batch in precomputed for label in batch.label_indexes] == list(range(5))


def test_features_are_standardized_over_all_images_and_never_divided_by_zero() -> None:
    inputs = np.random.default_rng(0).normal(3, 2, (1000, 2)).astype(np.float32)
    inputs[:, 1] = 7
    precomputed = PrecomputedInputs(inputs, np.arange(1000), np.zeros(1000, np.int64), 1, 10, (0, 0))
    by = standardization(precomputed, Alone())
    np.testing.assert_allclose(by.mean, inputs.mean(axis=0), rtol=1e-5)
    (batch, *_) = precomputed.standardized(by)
    assert abs(batch.inputs.mean()) < 0.2
    assert (batch.inputs[:, 1] == 0).all()
    assert usable_deviation(np.array([4.0, 0.0, 1e-20]), np.array([1.0, 0.0, 5.0])).tolist() == [2.0, 1.0, 1.0]
    assert Standardization(np.array([1.0]), np.array([2.0])).of(np.array([[5.0]])).tolist() == [[2.0]]


@pytest.mark.parametrize(("power", "times"), [(1.0, 9), (0.5, 3), (0.0, 1)])
def test_rare_labels_weigh_more(power: float, times: int) -> None:
    weights = label_weights(np.array([0] * 9 + [1], np.int64), 3, power, Alone())
    assert weights[1] == pytest.approx(times * weights[0])


def test_an_augmented_epoch_is_the_same_again_and_another_one_later(tmp_path: Path) -> None:
    images = replace(shard(tmp_path, red_and_blue(19)), threads=1)
    source = AugmentedImages(images, MeanColors(), batch_size=8, seed=0)
    assert source.steps == 3
    first, again, later = (np.stack([batch.inputs for batch in source.batches(epoch)]) for epoch in (1, 1, 2))
    assert first.shape == (3, 8, 3)  # the last batch is filled up with images of another round
    assert (first == again).all()
    assert not np.array_equal(first, later)


def test_two_shards_share_the_images_of_an_epoch(tmp_path: Path) -> None:
    images = red_and_blue(19)
    converter = write_cache(tmp_path / "cache", images)
    ids = [
        image_id
        for rank in (0, 1)
        for image_id in Shard((converter,), Decoding(224), rank, 2, 1).labels()["image_id"].tolist()
    ]
    assert len(ids) == len(set(ids)) == 19


def test_batches_have_equal_lengths_and_a_shuffle_loses_none() -> None:
    def parts() -> list[DecodedImages]:
        ids = np.arange(1000)
        return [
            DecodedImages(ids[at : at + 7], ids[at : at + 7], np.zeros((len(ids[at : at + 7]), 1)))
            for at in range(0, 1000, 7)
        ]

    batches = [batch.image_ids for batch in rebatched(parts(), 32)]
    assert [len(batch) for batch in batches] == [32] * 31 + [8]
    assert np.concatenate(batches).tolist() == list(range(1000))
    shuffled = np.concatenate([part.image_ids for part in shuffle(parts(), np.random.default_rng(0))])
    assert sorted(shuffled) == list(range(1000)) != shuffled.tolist()


def test_images_of_two_splits_are_read_one_split_after_the_other_each_time() -> None:
    first, second = (
        PrecomputedInputs(np.full((1, 2), count, np.float32), np.zeros(count, int), np.full(count, count), 1, 1, (0, 0))
        for count in (2, 3)
    )
    both = JoinedInputs((first, second))
    for _ in range(2):
        assert np.concatenate([batch.inputs[:, 0] for batch in both]).tolist() == [2, 2, 3, 3, 3]
    assert both.label_indexes.tolist() == [2, 2, 3, 3, 3]


def test_images_of_two_splits_come_mixed_in_another_order_each_epoch() -> None:
    first, second = (
        PrecomputedInputs(
            np.arange(start, end)[:, None], np.arange(end - start), np.arange(start, end), steps, 4, (0, 0)
        )
        for start, end, steps in ((0, 13, 4), (13, 16, 1))
    )
    both = JoinedInputs((first, second))
    epochs = [list(both.batches(epoch)) for epoch in (1, 2, 2)]
    for epoch in epochs:
        assert [len(batch.label_indexes) for batch in epoch] == [4] * both.steps == [4] * 5
        assert all((batch.inputs[:, 0] == batch.label_indexes).all() for batch in epoch)
    orders = [np.concatenate([batch.label_indexes for batch in epoch]).tolist() for epoch in epochs]
    assert orders[0] != orders[1] == orders[2]
    assert np.bincount(orders[0], minlength=16).tolist().count(1) == 12, "16 images in 20 places"
    assert len({number // 4 for number, row in enumerate(orders[0]) if row >= 13}) > 1


def test_only_views_of_the_other_split_are_computed(tmp_path: Path) -> None:
    images, colors = [(png(number, (80, 60)), number) for number in range(24)], MeanColors()
    for split in ("training", "validation"):
        (tmp_path / split).mkdir()
    views = AugmentedViews(2, shard(tmp_path / "training", images[:16]), colors, Alone(), batch_size=4, seed=0)
    list(views.batches(1))
    asked = colors.asked
    other = replace(views, shard=shard(tmp_path / "validation", images[16:]), computed={})
    both = JoinedViews((views, other))
    batches = list(both.batches(1))
    assert colors.asked == asked + 32  # one padded batch
    assert {*np.concatenate([batch.label_indexes for batch in batches])} == {*range(24)}


def test_augmented_views_are_computed_once_and_shown_in_turn_in_another_order(tmp_path: Path) -> None:
    images, colors = [(png(number, (80, 60)), number) for number in range(8)], MeanColors()
    views = AugmentedViews(2, shard(tmp_path, images), colors, Alone(), batch_size=4, seed=0)
    epochs = [list(views.batches(epoch)) for epoch in (1, 2, 3, 3)]
    assert colors.asked == 2 * 32
    orders = [np.concatenate([batch.label_indexes for batch in epoch]).tolist() for epoch in epochs]
    assert orders[0] != orders[2] == orders[3]
    first, second, third, _ = (
        np.concatenate([batch.inputs for batch in epoch])[np.argsort(order)]
        for epoch, order in zip(epochs, orders, strict=True)
    )
    np.testing.assert_array_equal(first, third)
    assert (first != second).any(axis=1).all()
