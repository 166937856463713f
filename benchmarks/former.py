"""A checkout of an earlier commit of this project, which competes with this one in the same run."""

import os
import shutil
import subprocess
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

from benchmarks.measurement import ROOT
from benchmarks.photographs import CACHE

COMMIT = "BEFORE"  # environment variable; `make bench BEFORE=<commit>` sets it
DEFAULT = "HEAD~1"


@cache
def former_root(checkout: Path = ROOT, folder: Path = CACHE / "former") -> Path | None:
    """The code of the commit that BEFORE names, by default HEAD~1, with the benchmarks of this checkout.

    All contestants are thus measured in the same way. None if this is not a Git checkout, or has no earlier commit.

    Args:
        checkout: This checkout.
        folder: Where the code of earlier commits is kept.

    Raises:
        SystemExit: BEFORE names no commit.
    """
    named = os.environ.get(COMMIT)
    commit = _git(checkout, "rev-parse", "--verify", "--quiet", f"{named or DEFAULT}^{{commit}}")
    if commit is None:
        if named:
            raise SystemExit(f"{COMMIT} is {named!r}: expected a commit of this checkout, such as {DEFAULT} or a tag")
        return None
    root = folder / commit.decode().strip()[:10]
    if not (root / "definitions.py").is_file():
        archive = subprocess.run(
            ["git", "archive", commit.decode().strip()], cwd=checkout, capture_output=True, check=True
        ).stdout
        shutil.rmtree(root, ignore_errors=True)
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(root, filter="data")
    shutil.rmtree(root / "benchmarks", ignore_errors=True)
    shutil.copytree(checkout / "benchmarks", root / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def _git(checkout: Path, *arguments: str) -> bytes | None:
    try:
        process = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return process.stdout if process.returncode == 0 else None
