"""Tests of where a backbone's weights come from."""

import socket
from pathlib import Path

import pytest

from image_assets.models.backbones import DOWNLOAD_TIMEOUT_SECONDS, download_timeout, weights_file


def test_a_weights_file_is_found_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "some.weights").touch()

    assert weights_file(str(tmp_path), "some.weights") == tmp_path / "some.weights"


@pytest.mark.parametrize(
    ("folder", "found"), [("empty", "holds nothing"), ("full", "holds other.bin"), ("missing", "is no folder")]
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
