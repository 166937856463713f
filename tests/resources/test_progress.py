"""Long work shows its progress, short work shows nothing."""

import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from resources.progress import ProgressLine, to_line

ROOT = Path(__file__).parents[2]
LIVE = """
import time
from resources.progress import ProgressLine
with ProgressLine("read", 40, "files", print) as progress:
    for _ in range(40):
        time.sleep({pause})
        progress.update()
print("done")
"""


@pytest.mark.parametrize(
    ("done", "total", "rate", "line"),
    [
        (12_000, 80_000, 3_120.4, "read 12,000 of 80,000 files, 3,120 a second, 0:00:22 left"),
        (3, 12, 0.25, "read 3 of 12 files, 0.25 a second, 0:00:36 left"),
        (12, 12, 4.0, "read 12 of 12 files, 4 a second"),
        (500, None, 50.0, "read 500 files, 50 a second"),
        (13, 12, 4.0, "read 13 files, 4 a second"),
        (0, 12, None, "read 0 of 12 files"),
    ],
)
def test_a_line_says_how_far_how_fast_and_how_long(done: int, total: int | None, rate: float | None, line: str) -> None:
    assert to_line("read", done, total, "files", rate) == line


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for progress lines."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def go_by(seconds: float) -> None:
        now[0] += seconds

    return go_by


def test_lines_come_ten_seconds_apart_however_often_it_is_counted(seconds: Callable[[float], None]) -> None:
    lines: list[str] = []
    with ProgressLine("read", 1000, "files", lines.append) as progress:
        for _ in range(360):
            seconds(0.125)
            progress.update()
    assert [line.split(", ")[0] for line in lines] == [f"read {done} of 1,000 files" for done in (80, 160, 240, 320)]
    assert lines[-1].endswith("8 a second, 0:01:25 left")


def test_what_was_done_before_counts_as_done_and_not_as_speed(seconds: Callable[[float], None]) -> None:
    lines: list[str] = []
    with ProgressLine("written", 200, "images", lines.append, before=100) as progress:
        for done in (50, 40):  # a task that began again
            seconds(10.0)
            progress.reach(done)
    assert lines[0] == "written 150 of 200 images, 5 a second, 0:00:10 left"
    assert progress.n == 150


def test_short_work_shows_nothing() -> None:
    lines: list[str] = []
    assert list(ProgressLine("read", 3, "files", lines.append, items=[1, 2, 3])) == [1, 2, 3]
    assert lines == []


def on_a_terminal(program: str) -> str:
    """The output of a program on a terminal with 60 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # the program has ended
            os.close(ours)
    return shown.decode()


def test_a_terminal_has_one_live_line_which_is_gone_in_the_end() -> None:
    shown = on_a_terminal(LIVE.format(pause=0.1)).split("\r")
    assert any("of 40 files" in line and line.rstrip().endswith("left") for line in shown)
    assert shown[-3].strip() == "", "the line is removed before anything else is printed"
    assert shown[-2:] == ["done", "\n"]
    assert on_a_terminal(LIVE.format(pause=0.001)) == "done\r\n"


def test_a_line_above_brings_no_live_line_too_early_and_leaves_none_behind() -> None:
    early = 'with ProgressLine("read", 40, "files", print) as one:\n    one.write("above", file=sys.stdout)\n'
    late = early.replace("    one", "    time.sleep(2.1)\n    one")
    program = f"import sys, time\nfrom resources.progress import ProgressLine\n{early}{late}print('done')\n"
    shown = on_a_terminal(program).replace("\r", "\n").split("\n")
    assert [line.strip() for line in shown if line.strip()] == ["above", "above", "read 0 of 40 files", "done"]
    assert shown[shown.index("read 0 of 40 files") + 1].isspace(), "the line is removed"


def test_lines_of_a_runs_threads_are_in_its_log(seconds: Callable[[float], None]) -> None:
    @dg.asset
    def shells() -> None:
        progress = ProgressLine("read", 200, "files", dg.get_dagster_logger().info)

        def count() -> None:
            with progress:
                seconds(10.0)
                progress.reach(50)

        thread = threading.Thread(target=count)
        thread.start()
        thread.join()

    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([shells], instance=instance)
        lines = [(entry.step_key, entry.user_message) for entry in instance.all_logs(run.run_id)]
    assert ("shells", "read 50 of 200 files, 5 a second, 0:00:30 left") in lines
