"""What the code knows of a backbone, and where its weights come from."""

import re
import socket
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from image_assets.images.pixels import Reading
from image_assets.models.backbone_weights import (
    DOWNLOAD_TIMEOUT_SECONDS,
    backbones_at_hand,
    download_timeout,
    how_to_get_weights,
    require_packages,
)
from image_assets.models.backbones import (
    BACKBONES,
    EFFICIENTNET_LITE0,
    MOBILENET_V2,
    RESNET50,
    Package,
    backbone_of,
    block_ends,
    require_supported,
    to_backbone,
)
from image_assets.models.embedding_networks import backbone_identity
from image_assets.models.external_backbones import onnx_digest
from image_assets.models.training import Task, weights_identity
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_plan import TrainingPlan
from resources.delta.petastorm_caches import Cache
from resources.training import BackboneWeights
from resources.weight_files import weights_file
from tests.image_assets.conftest import PLAN
from tests.support.onnx_files import write_onnx

TORCH_LITE = EFFICIENTNET_LITE0.implementations["torch"]
TORCH_RESNET = RESNET50.implementations["torch"]


@pytest.mark.parametrize("name", MOBILENET_V2.implementations["torch"].weight_files)
def test_weights_are_found_in_a_folder_under_each_of_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()

    assert weights_file(str(tmp_path), MOBILENET_V2.implementations["torch"].weight_files) == tmp_path / name


@pytest.mark.parametrize(
    ("folder", "found"), [("empty", "holds nothing"), ("full", "holds other.bin"), ("missing", "is not a folder")]
)
def test_a_folder_without_weights_is_reported_with_what_is_there(tmp_path: Path, folder: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.bin").touch()

    with pytest.raises(FileNotFoundError, match=rf"{folder}, which {found}: expected a folder with resnet50-\w+\.pth"):
        weights_file(str(tmp_path / folder), TORCH_RESNET.weight_files)


def test_weights_that_a_package_has_need_no_folder_and_are_the_same_for_all_frameworks(tmp_path: Path) -> None:
    for source, identity in {str(tmp_path): TORCH_LITE.weights, "auto": TORCH_LITE.weights, "none": "none"}.items():
        for framework in EFFICIENTNET_LITE0.implementations:
            assert weights_identity(EFFICIENTNET_LITE0, framework, BackboneWeights(source=source)) == identity
    with pytest.raises(FileNotFoundError, match="is imagenett, which is not a folder: expected a folder, or one"):
        weights_identity(EFFICIENTNET_LITE0, "torch", BackboneWeights(source="imagenett"))


def test_an_onnx_file_is_other_weights_if_those_beside_it_are(tmp_path: Path) -> None:
    import onnx

    written, identities = tmp_path / "whole.onnx", set()
    write_onnx(written, ["n", 3, 32, 32], ["n", 8, 8, 8])
    for name in ("first", "second"):
        model = onnx.load(written)
        kernel = model.graph.initializer[0]
        kernel.raw_data = bytes(reversed(kernel.raw_data)) if name == "second" else kernel.raw_data
        file = tmp_path / name / "network.onnx"
        file.parent.mkdir()
        onnx.save_model(model, file, save_as_external_data=True, location="weights", size_threshold=0)
        identities.add(onnx_digest(str(file)))
    assert len({(tmp_path / name / "network.onnx").read_bytes() for name in ("first", "second")}) == 1
    assert len({*identities, sha256(written.read_bytes()).hexdigest()}) == 3
    assert onnx_digest(str(written)) == sha256(written.read_bytes()).hexdigest()


def test_missing_weights_are_told_with_address_file_setting_and_what_works_now(tmp_path: Path) -> None:
    (tmp_path / "mobilenet_v2_features.pth").write_bytes(b"weights")
    expected = (
        "https://download.pytorch.org/models/resnet50-0676ba61.pth .* as resnet50-0676ba61.pth in a folder, .* "
        "IMAGE_ASSETS_BACKBONE. Backbones whose weights are at hand: mobilenet_v2"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        weights_identity(RESNET50, "torch", BackboneWeights(source=str(tmp_path)))
    assert re.search("download https://storage.googleapis.com", how_to_get_weights(RESNET50, "tensorflow", "auto"))


def test_downloaded_weights_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    assert "resnet50" not in backbones_at_hand("torch", "auto")
    file = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert "resnet50" in backbones_at_hand("torch", "auto")
    assert backbones_at_hand("tensorflow", "auto") == [name for name in BACKBONES if "_lite" in name], "in packages"
    assert backbones_at_hand("tensorflow", "none") == [
        name for name, row in BACKBONES.items() if "tensorflow" in row.implementations
    ]


def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    own = replace(TORCH_RESNET, packages=(Package("some-package", "some_package_that_nobody_has"),))
    backbone = replace(RESNET50, implementations={"torch": own})
    with pytest.raises(ImportError, match="resnet50 needs some-package, .* `uv pip install some-package`"):
        require_packages(backbone, "torch")


def test_downloads_give_up_on_silence_and_other_connections_do_not() -> None:
    before = socket.getdefaulttimeout()

    with download_timeout():
        assert socket.getdefaulttimeout() == DOWNLOAD_TIMEOUT_SECONDS
    assert socket.getdefaulttimeout() == before


def test_a_last_layer_ends_each_of_the_blocks() -> None:
    layers = ["Conv1", "Conv1_relu", "expanded_conv_project_BN", "block_1_project_BN", "block_2_expand_BN"]
    pattern = MOBILENET_V2.implementations["tensorflow"].blocks
    ends = block_ends(pattern, [*layers, "block_2_project_BN", "block_2_add", "out_relu"])
    assert ends == ["Conv1_relu", "expanded_conv_project_BN", "block_1_project_BN", "block_2_add", "out_relu"]


def test_what_names_no_backbone_has_the_first_one() -> None:
    assert backbone_of({"framework": "torch"}) is MOBILENET_V2
    assert backbone_of({"backbone_name": "mobilenet_v2"}, "backbone_name") is MOBILENET_V2


def test_a_framework_without_a_backbone_lists_those_that_it_has() -> None:
    require_supported("convnext_tiny", "torch")
    require_supported("timm:resnet18", "torch")
    with pytest.raises(ValueError, match="'convnext_tiny', which tensorflow does not have: choose mobilenet_v2"):
        require_supported("convnext_tiny", "tensorflow")
    with pytest.raises(ValueError, match="which tensorflow does not have: .* or train it in torch"):
        require_supported("onnx:/some.onnx", "tensorflow")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backbone": "resnet"}, "backbone is 'resnet': expected 'auto', or one of mobilenet_v2, .* or onnx:<file>"),
        ({"backbone": "timm:resnet18", "trainable": "all"}, "can only be used as it is: set trainable to 'head'"),
        ({"trainable": "top_blocks", "top_blocks": 18}, "top_blocks is 18: expected fewer than the 18 blocks"),
        ({"trainable": "top_blocks", "top_blocks": 4}, "top_blocks is 4, .* of its last 5 blocks: expected at least 5"),
    ],
)
def test_a_backbone_that_cannot_be_trained_like_that_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TrainingConfig(**settings)
    assert TrainingConfig(backbone="resnet50", trainable="top_blocks", top_blocks=19).top_blocks == 19


def test_an_onnx_file_says_what_it_takes(tmp_path: Path) -> None:
    name = write_onnx(tmp_path / "a.onnx", ["n", 3, 32, 32], ["n", 8, 8, 8], mean=[0.5] * 3, std=[0.25] * 3)
    backbone = to_backbone(name)
    assert (backbone.side_pixels, backbone.features, backbone.blocks) == (32, 8, 0)
    own = backbone.implementations["torch"]
    assert (own.mean, own.deviation, own.pools) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False)
    assert len(weights_identity(backbone, "torch", BackboneWeights(source="none"))) == 64
    unstated = to_backbone(write_onnx(tmp_path / "b.onnx", ["n", 3, "h", "w"], ["n", 8, "h", "w"]))
    assert (unstated.side_pixels, unstated.implementations["torch"].mean) == (224, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["n", 1, 32, 32], r"first of shape \(0, 1, 32, 32\): expected one of shape \(images, 3, height"),
        (["n", 3, 32, 48], "takes images of 48 x 32: expected squares"),
        (["n", 3, 32], r"of shape \(0, 3, 32\)"),
    ],
)
def test_an_onnx_file_that_takes_no_images_is_refused(tmp_path: Path, shape: list[int | str], expected: str) -> None:
    name = write_onnx(tmp_path / "some.onnx", shape, ["n", 8, 8, 8])
    with pytest.raises(ValueError, match=expected):
        to_backbone(name)


def test_a_missing_onnx_file_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="backbone is onnx:/nowhere.onnx, which is not a file"):
        to_backbone("onnx:/nowhere.onnx")


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


@pytest.fixture
def timm_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a package timm with this code."""

    def install(code: str) -> None:
        (tmp_path / "timm.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("name", "hint"), [("resnt50", "did you mean resnet50 or resnet50d? "), ("of another package", "")]
)
def test_an_unknown_network_of_timm_is_named_with_similar_ones(
    timm_of: Callable[[str], None], name: str, hint: str
) -> None:
    names = ["resnet50", "resnet50d", "vit_base"]
    timm_of(f"is_model = lambda name: False\nlist_models = list\nlist_pretrained = lambda: {names}")
    message = f"timm has no network named {name!r}: {hint}`timm.list_pretrained()` lists all"
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        to_backbone(f"timm:{name}")


def test_a_description_by_timm_that_dies_without_a_word_is_an_error_with_its_exit_code(
    timm_of: Callable[[str], None],
) -> None:
    timm_of("import os; os._exit(3)")
    with pytest.raises(ValueError, match="timm cannot describe 'silent': its process ended with exit code 3"):
        to_backbone("timm:silent")


def test_a_description_by_timm_that_takes_too_long_is_an_error_with_what_to_do(
    timm_of: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timm_of("import time; time.sleep(60)")
    monkeypatch.setattr("image_assets.models.external_backbones.TIMM_SECONDS", 1)
    with pytest.raises(ValueError, match="timm did not describe 'slow' within 1 seconds: try again when .* less busy"):
        to_backbone("timm:slow")
