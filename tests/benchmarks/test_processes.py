"""Tests of the measurement of a rank's memory."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import anonymous_bytes

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1024 * 1024


def test_pages_of_files_are_no_memory_of_a_process(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(bytes(64 * MEBIBYTE))
    before = anonymous_bytes(os.getpid())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[place] for place in range(0, len(pages), mmap.PAGESIZE)) == 0
        assert anonymous_bytes(os.getpid()) - before < 16 * MEBIBYTE


WATCHED = f"""
import subprocess, sys
from benchmarks.processes import watched_ranks
holding = "import time; held = b'1' * {64 * MEBIBYTE}; time.sleep(1)"
with watched_ranks() as most:
    subprocess.run([sys.executable, "-c", holding], check=True)
print(most["bytes"])
"""


def test_the_most_that_a_python_process_below_held_is_told() -> None:
    """Runs in a separate process, because other tests may have started processes below this one."""
    command = [sys.executable, "-c", WATCHED]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 64 * MEBIBYTE <= int(printed) < 128 * MEBIBYTE
