"""A backbone is known by its weights."""

from pathlib import Path

import pytest

from resources.training import BackboneWeights

FILE, OTHER_FILE = "mobilenet_v2_features.pth", "mobilenet_v2_no_top.weights.h5"


@pytest.mark.parametrize("source", ["auto", "imagenet", "none"])
def test_a_named_source_is_its_own_identity(source: str) -> None:
    assert BackboneWeights(source=source).identity([FILE]) == source


def test_a_folder_is_known_by_the_bytes_of_its_weight_file(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, content in zip(folders, [b"weights", b"weights", b"others"], strict=True):
        folder.mkdir()
        (folder / FILE).write_bytes(content)
    one, same, other = (BackboneWeights(source=str(folder)).identity([FILE]) for folder in folders)
    assert one == same != other


def test_a_folder_without_the_frameworks_weights_is_told_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"weights")
    with pytest.raises(
        FileNotFoundError, match=r"holds mobilenet_v2_features\.pth: expected a folder with mobilenet_v2_no_top"
    ):
        BackboneWeights(source=str(tmp_path)).identity([OTHER_FILE])
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        BackboneWeights(source=str(tmp_path / "nowhere")).identity([FILE])
