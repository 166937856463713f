"""A file is replaced only by one that is on the disk."""

import os
from pathlib import Path

import pytest

from resources.files.replacing import replace_text


def test_a_text_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "record.json", []
    file.write_text("old")

    def sync(descriptor: int) -> None:
        written = os.pread(descriptor, 100, 0)
        seen.append((written, file.read_text()))

    monkeypatch.setattr("os.fsync", sync)
    replace_text(file, "new")
    assert seen == [(b"new", "old")]
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]
