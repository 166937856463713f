"""Images that are unlike the training images are flagged, and 5 % of those that are like them."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from image_assets.models.novelty import FALSE_ALARMS, MAX_NEIGHBORS, TrainingEmbeddings
from tests.support.brightness_version import SIDE, saved_brightness


def embeddings(count: int, seed: int, around: int = 0) -> np.ndarray:
    """Embeddings with 64 features, most of which depend on what they are around."""
    center = 3 * np.random.default_rng(around).random(64)
    return (center + np.random.default_rng(seed).random((count, 64))).astype(np.float32)


@pytest.mark.parametrize(("count", "neighbor"), [(3, 1), (100, 5), (2000, MAX_NEIGHBORS)])
def test_the_distance_is_that_of_the_kth_nearest_training_image(count: int, neighbor: int) -> None:
    training, others = embeddings(count, 1), embeddings(10, 2)
    nearest = NearestNeighbors(n_neighbors=neighbor, metric="cosine").fit(training)
    expected = nearest.kneighbors(others)[0][:, -1]
    assert TrainingEmbeddings.of(training).distances(others) == pytest.approx(expected, abs=1e-4)


def test_few_images_like_the_training_images_and_all_others_are_beyond_the_threshold() -> None:
    found = TrainingEmbeddings.of(embeddings(1000, 1))
    found = found.calibrated(found.distances(embeddings(1000, 2)))
    alike = (found.distances(embeddings(4000, 3)) > found.threshold).mean()
    assert alike == pytest.approx(FALSE_ALARMS, abs=0.02)
    assert (found.distances(embeddings(100, 4, around=5)) > found.threshold).all()


@pytest.mark.parametrize("count", [10, 30, 1000])  # of fewer than 40 images, the nearest one counts
def test_a_threshold_grows_with_the_distances_of_another_network(count: int) -> None:
    before, others = TrainingEmbeddings.of(embeddings(count, 1)), embeddings(1000, 2)
    before = before.calibrated(before.distances(others))
    wider = TrainingEmbeddings.of(embeddings(count, 1) - 1).rescaled(before)  # nearer to 0, so angles are wider
    assert wider.threshold > 1.5 * before.threshold
    assert (wider.distances(others - 1) > wider.threshold).mean() == pytest.approx(FALSE_ALARMS, abs=0.02)
    equal = TrainingEmbeddings.of(np.ones((3, 4)))
    assert equal.rescaled(equal.calibrated(np.array([0.25]))).threshold == pytest.approx(0.25, abs=1e-3)


def test_it_is_the_same_after_saving(tmp_path: Path) -> None:
    found = TrainingEmbeddings.of(embeddings(100, 1), compared_from=48).calibrated(np.array([0.25, 0.5]))
    found.save(tmp_path / "saved.npz")
    loaded = TrainingEmbeddings.load(str(tmp_path / "saved.npz"))
    assert (loaded.directions == found.directions).all()
    assert (loaded.compared_from, loaded.max_neighbors) == (48, MAX_NEIGHBORS)
    assert loaded.threshold == found.threshold == pytest.approx(0.5, abs=1e-3)


def test_features_that_are_not_compared_change_nothing() -> None:
    training, others = embeddings(100, 1), embeddings(10, 2)
    found = TrainingEmbeddings.of(training, compared_from=48)
    assert found.distances(others) == pytest.approx(TrainingEmbeddings.of(training[:, 48:]).distances(others[:, 48:]))


def test_a_file_of_an_earlier_release_compares_all_features_with_the_50th_nearest(tmp_path: Path) -> None:
    found = replace(TrainingEmbeddings.of(embeddings(2000, 1)), max_neighbors=50)
    np.savez(tmp_path / "saved.npz", directions=found.directions, threshold=0.5)
    loaded = TrainingEmbeddings.load(str(tmp_path / "saved.npz"))
    assert (loaded.distances(embeddings(10, 2)) == found.distances(embeddings(10, 2))).all()


def test_embeddings_without_a_direction_have_a_distance() -> None:
    found = TrainingEmbeddings.of(np.zeros((3, 4)))
    assert found.distances(np.array([[0, 0, 0, 0], [1, 2, 3, 4]], np.float32)).tolist() == [1, 1]


def test_a_version_says_how_far_an_image_is_from_its_training_images(tmp_path: Path) -> None:
    grays = TrainingEmbeddings.of(np.full((20, 3), 100.0))
    training = grays.calibrated(grays.distances(np.full((10, 3), 7.0)))
    version = mlflow.pyfunc.load_model(str(saved_brightness(tmp_path, training)))
    colors = {"gray": (50, 50, 50), "red": (255, 0, 0)}
    answers = version.predict([np.full((SIDE, SIDE, 3), color, np.uint8) for color in colors.values()] + [b"no image"])
    assert answers["unlike_training"].tolist() == [False, True, None]
    assert answers["distance_from_training"].tolist() == pytest.approx([0, 1 - 3**-0.5, np.nan], abs=1e-3, nan_ok=True)


def test_a_version_without_training_embeddings_measures_no_distance(tmp_path: Path) -> None:
    version = mlflow.pyfunc.load_model(str(saved_brightness(tmp_path)))
    answers = version.predict([np.zeros((SIDE, SIDE, 3), np.uint8)])
    assert answers["label"].tolist() == ["dark"]
    assert answers["unlike_training"].tolist() == [None]
    assert answers["distance_from_training"].isna().all()
