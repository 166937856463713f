"""Homes that another process uses."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A program that uses a home until it gets a line.
USES = "import sys; from pathlib import Path; from resources.home import in_use\n"
USES += "with in_use(Path(sys.argv[1]), alone=sys.argv[2] == 'alone'):\n    print('in use', flush=True); input()"


@contextmanager
def used_by_another_process(home: Path, how: str = "together") -> Iterator[None]:
    """Another process uses the home inside the block."""
    with subprocess.Popen(
        [sys.executable, "-c", USES, str(home), how], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in use\n"
        yield
        process.communicate("\n")
