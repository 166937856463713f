"""Exported backbones give the embeddings that trainings would compute, under the same name."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_assets.images.pixels import DEFAULT
from image_assets.models.backbones import CURRENT_BACKBONE, MOBILENET_V2, MOBILENET_V2_LEVELS, Backbone
from image_assets.models.embedding_networks import (
    RETRY_SECONDS,
    BackboneNotExported,
    EmbeddingNetwork,
    Export,
    backbone_identity,
    digest_of,
    embedding_networks,
    file_of,
    is_recorded,
    loaded_network,
    write_export,
)
from tests.image_assets.conftest import PLAN, in_a_process
from tests.support.images import noise_jpeg, opened
from tests.support.photographs import WEIGHTS
from tests.support.rank_programs import Alone

SIDE = CURRENT_BACKBONE.side_pixels


class OneRank(Alone):
    """The only rank, which broadcasts to itself."""

    def broadcast(self, value: Any) -> Any:
        return value


def networks_of(folder: Path, export: Export, lines: Sequence[str] = ()) -> list[EmbeddingNetwork]:
    """The networks of the export, which is announced with these lines."""
    log: list[str] = []
    networks, faults = embedding_networks(str(folder), [export], "rgb", DEFAULT, log.append)
    assert (faults, log) == ({}, [*lines])
    return networks


def on_rank(framework: str, backbone: Backbone, weights: str, pixels: np.ndarray) -> tuple[str, np.ndarray]:
    """What a training calls its embeddings, and the embeddings of some images."""
    module = import_module(f"image_assets.models.{framework}_training")
    network, origin = module.build_network(replace(PLAN, backbone=weights, backbone_name=backbone.name), OneRank())
    assert origin == ("package" if weights == "imagenet" else "folder")
    digest = digest_of(network.backbone_weights(), backbone, framework, origin)
    return backbone_identity(framework, backbone, digest, "rgb"), network.freeze(None, PLAN.head)(pixels)


@pytest.mark.training
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("framework", "backbone", "weights"),
    [
        ("tensorflow", MOBILENET_V2_LEVELS, str(WEIGHTS)),
        ("tensorflow", CURRENT_BACKBONE, "imagenet"),
        ("torch", CURRENT_BACKBONE, "imagenet"),
    ],
    ids=["of its own", "shared by tensorflow", "shared by torch"],
)
def test_an_exported_backbone_is_the_one_that_ranks_freeze(
    framework: str, backbone: Backbone, weights: str, tmp_path: Path
) -> None:
    if weights != "imagenet" and not WEIGHTS.is_dir():
        pytest.skip(f"no weights in {WEIGHTS}")
    export = Export(backbone.exporter(framework), backbone.name, weights, "some weights")
    line = f"exporting {backbone.name} from {export.framework} to ONNX, once: it may take a minute"
    (network,) = networks_of(tmp_path, export, [line])
    pixels = np.stack([np.asarray(opened(noise_jpeg(seed)).resize((SIDE, SIDE))) for seed in range(3)])
    identity, expected = in_a_process(on_rank, framework, backbone, weights, pixels)
    assert network.backbone == identity
    np.testing.assert_allclose(loaded_network(network.file)(pixels)["embedding"], expected, atol=1e-4)
    written = Path(network.file).stat().st_mtime_ns
    assert networks_of(tmp_path, export) == [network]
    assert Path(network.file).stat().st_mtime_ns == written, "it is exported once"


def test_untrained_weights_are_not_exported(tmp_path: Path) -> None:
    assert networks_of(tmp_path, Export("torch", CURRENT_BACKBONE.name, "none", "none")) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.training
def test_a_framework_that_cannot_export_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    export = Export("torch", MOBILENET_V2.name, str(tmp_path / "nowhere"), "lost weights")
    with pytest.raises(BackboneNotExported, match="nowhere, which is not a folder: expected a folder with"):
        write_export(str(tmp_path), export)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_record_that_is_cut_off_or_lacks_its_file_is_no_export(tmp_path: Path) -> None:
    export = Export("torch", CURRENT_BACKBONE.name, "auto", "auto")
    file = file_of(str(tmp_path), export, "json")
    file.parent.mkdir()
    for record in ("", '{"weights_dig', '{"weights_digest": "1", "origin": "imagenet"}'):
        file.write_text(record)
        assert not is_recorded(str(tmp_path), export)
    file_of(str(tmp_path), export, "onnx").touch()
    assert is_recorded(str(tmp_path), export)
    (network,) = networks_of(tmp_path, export)
    assert network.backbone == backbone_identity("torch", CURRENT_BACKBONE, "1", "rgb")


def test_weights_that_could_not_be_downloaded_are_tried_again_after_some_time(tmp_path: Path) -> None:
    export = Export("torch", CURRENT_BACKBONE.name, "auto", "auto")
    file = file_of(str(tmp_path), export, "json")
    file.parent.mkdir()
    file.write_text('{"weights_digest": "1", "origin": "untrained"}')
    assert networks_of(tmp_path, export) == []
    before = file.stat().st_mtime - RETRY_SECONDS
    os.utime(file, (before, before))
    assert not is_recorded(str(tmp_path), export)
