"""Which code made something."""

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """The commit of this checkout, with `-dirty` when files differ from it; the package's version outside of one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return version("image-assets")
