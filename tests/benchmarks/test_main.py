"""The command `make bench`: what it does before and after the measurements."""

import sys

import psutil
import pytest

from benchmarks.__main__ import main


def test_conditions_that_cannot_be_read_end_the_command_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable() -> None:
        raise OSError("no /proc/meminfo")

    monkeypatch.setattr(sys, "argv", ["bench", "--only", "sensor", "--size", "1", "--repeats", "1"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restores what the command replaces
    monkeypatch.setattr(psutil, "virtual_memory", unreadable)
    with pytest.raises(OSError, match="no /proc/meminfo"):
        main()
    assert capsys.readouterr().out == ""
