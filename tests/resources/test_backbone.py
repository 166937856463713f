"""A backbone is known by its weights."""

from pathlib import Path

import pytest

from resources.backbone import WEIGHT_FILES, Backbone


@pytest.mark.parametrize("source", ["auto", "imagenet", "none"])
def test_a_named_source_is_its_own_identity(source: str) -> None:
    assert Backbone(source=source).identity("torch") == source


def test_a_folder_is_known_by_the_bytes_of_its_weight_file(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, content in zip(folders, [b"weights", b"weights", b"others"], strict=True):
        folder.mkdir()
        (folder / WEIGHT_FILES["torch"]).write_bytes(content)
    one, same, other = (Backbone(source=str(folder)).identity("torch") for folder in folders)
    assert one == same != other


def test_a_folder_without_the_frameworks_weights_is_told_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / WEIGHT_FILES["torch"]).write_bytes(b"weights")
    with pytest.raises(FileNotFoundError, match=r"holds mobilenet_v2_features\.pth: expected mobilenet_v2_no_top"):
        Backbone(source=str(tmp_path)).identity("tensorflow")
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        Backbone(source=str(tmp_path / "nowhere")).identity("torch")
