"""Homes with a given number of images in their data tables, reused as long as the code that wrote them is unchanged."""

import shutil
import sys
from hashlib import sha256
from pathlib import Path

import dagster as dg

from benchmarks.measurement import ROOT, measured
from benchmarks.ours import materialized, use_home
from benchmarks.photographs import CACHE, Photographs, landing_of
from benchmarks.task import read_task, timed

HOMES = CACHE / "homes"
TABLE_CODE = ("image_assets/*.py", "image_assets/images/*.py", "image_assets/data/*.py", "resources/**/*.py")


def code_files(root: Path = ROOT) -> list[Path]:
    """All code of a checkout that determines the content of a home's tables."""
    return sorted(file for pattern in TABLE_CODE for file in root.glob(pattern))


def code_digest(root: Path = ROOT) -> str:
    """A short hash of that code."""
    return sha256(b"\0".join(file.read_bytes() for file in code_files(root))).hexdigest()[:10]


def home_of(photographs: Photographs, count: int, root: Path = ROOT) -> tuple[Path, Path]:
    """A home whose tables contain `count` photographs, and its landing folder. Do not modify them.

    Args:
        photographs: What the files show.
        count: How many there are.
        root: The checkout whose code writes the home.
    """
    landing = landing_of(photographs, count)
    kind = f"{photographs.folder.name}-{count}" if root == ROOT else f"{photographs.folder.name}-{count}-before"
    home = HOMES / f"{kind}-{code_digest(root)}"
    finished = home.with_suffix(".finished")
    if not finished.exists():
        for old in HOMES.glob(f"{kind}-{'[0-9a-f]' * 10}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        run = measured([sys.executable, "-m", "benchmarks.homes", "build", str(landing), str(home), ""], root=root)
        if run.error:
            raise RuntimeError(f"building the home with {count:,} images failed: {run.error}")
        finished.touch()
    return home, landing


def data_assets() -> dg.AssetSelection:
    """The data assets that follow the landing folder, with their checks, but no caches: only training needs those."""
    from image_assets.jobs.asset_jobs import CACHES, FETCHED

    return dg.AssetSelection.groups("data") - CACHES - FETCHED


def main() -> None:
    """Build a home."""
    task = read_task()
    home = Path(task.target)
    use_home(home, Path(task.source))
    from resources.settings import read_settings
    from scripts.home import prepare

    prepare(read_settings())
    with timed(), dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        materialized(data_assets(), instance)


if __name__ == "__main__":
    main()
