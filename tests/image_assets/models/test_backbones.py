"""What the code knows of a backbone, and where its weights come from."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image_assets.images.pixels import Reading
from image_assets.models.backbones import (
    BACKBONES,
    DOWNLOAD_TIMEOUT_SECONDS,
    MOBILENET_V2,
    backbone_of,
    download_timeout,
    weights_file,
)
from image_assets.models.embedding_networks import backbone_identity
from image_assets.models.training import Task
from image_assets.models.training_plan import TrainingPlan
from resources.delta.petastorm_caches import Cache
from tests.image_assets.conftest import PLAN


def test_a_weights_file_is_found_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "some.weights").touch()

    assert weights_file(str(tmp_path), "some.weights") == tmp_path / "some.weights"


@pytest.mark.parametrize(
    ("folder", "found"), [("empty", "holds nothing"), ("full", "holds other.bin"), ("missing", "is not a folder")]
)
def test_a_missing_weights_file_is_told_with_what_is_there(tmp_path: Path, folder: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.bin").touch()

    with pytest.raises(FileNotFoundError, match=f"{folder} {found}: expected a folder with some.weights"):
        weights_file(str(tmp_path / folder), "some.weights")


def test_downloads_give_up_on_silence_and_other_connections_do_not() -> None:
    before = socket.getdefaulttimeout()

    with download_timeout():
        assert socket.getdefaulttimeout() == DOWNLOAD_TIMEOUT_SECONDS
    assert socket.getdefaulttimeout() == before


def test_a_last_layer_ends_each_of_the_blocks() -> None:
    layers = ["Conv1_relu", "expanded_conv_project_BN", "block_1_project_BN", "block_2_project_BN", "block_2_add"]
    ends = [MOBILENET_V2.last_layer([*layers, "out_relu"], block) for block in (0, 1, 2, 3, 18)]
    assert ends == ["Conv1_relu", "expanded_conv_project_BN", "block_1_project_BN", "block_2_add", "out_relu"]


def test_what_names_no_backbone_has_the_first_one() -> None:
    assert backbone_of({"framework": "torch"}) is MOBILENET_V2
    assert backbone_of({"backbone_name": "mobilenet_v2"}, "backbone_name") is MOBILENET_V2


def cache(name: str) -> Cache:
    """A cache of that name."""
    return Cache(name, f"file:///{name}", 3, (), "original", "rgb")


def task(plan: TrainingPlan) -> Task:
    """A task whose fingerprint version 0.1.0 computed as 4fc42e31bfdfe66d."""
    return Task("torch", ["a", "b"], cache("training-v1-x"), cache("validation-v1-y"), plan, "none", 2)


def test_fingerprints_from_before_backbones_had_names_are_found_and_another_backbone_has_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert task(PLAN).fingerprint == "4fc42e31bfdfe66d"

    other = replace(MOBILENET_V2, name="other")
    monkeypatch.setitem(BACKBONES, "other", other)
    plan = replace(PLAN, backbone_name="other")
    assert task(plan).fingerprint != task(PLAN).fingerprint


def test_embeddings_are_identified_by_everything_that_they_depend_on() -> None:
    def identity(**changes: Any) -> str:
        given = {"framework": "torch", "architecture": MOBILENET_V2, "weights_digest": "1", "color": "rgb"}
        return backbone_identity(**{**given, **changes})

    others = [
        identity(framework="tensorflow"),
        identity(architecture=replace(MOBILENET_V2, name="other")),
        identity(weights_digest="2"),
        identity(color="gray"),
        identity(reading=Reading("first")),
    ]
    assert identity() == identity(reading=Reading())
    assert identity().startswith("mobilenet_v2-torch-")
    assert len({identity(), *others}) == 6
