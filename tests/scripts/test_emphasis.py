"""What matters stands out on a terminal only."""

import io

import pytest

from scripts.emphasis import emphasized


class Terminal(io.StringIO):
    """A stream that says that a person looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_weight_and_color() -> None:
    assert emphasized("failed", "bad", Terminal()) == "\033[1;31mfailed\033[0m"


def test_a_pipe_gets_plain_text() -> None:
    assert emphasized("failed", "bad", io.StringIO()) == "failed"


@pytest.mark.parametrize(("variable", "said"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_color_gets_none(variable: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, said)
    assert emphasized("failed", "bad", Terminal()) == "failed"
