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

    monkeypatch.setattr(sys, "argv", ["bench", "--only", "sensor", "--size", "100", "--repeats", "1"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restores what the command replaces
    monkeypatch.setattr(psutil, "virtual_memory", unreadable)
    with pytest.raises(OSError, match="no /proc/meminfo"):
        main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--only", "sensor", "--size", "1"], "--size 1: sensor needs 100 or more"),
        (["--only", "ingest", "--size", "0"], "--size 0: ingest needs 1 or more"),
        (["--size", "500"], "--size 500: processes needs 1000 or more"),
    ],
)
def test_a_size_with_too_few_images_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    with pytest.raises(SystemExit):
        main()
    assert error in capsys.readouterr().err
