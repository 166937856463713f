"""Homes with a given number of images in their data tables, reused as long as the code that wrote them is unchanged."""

import shutil
import sys
from hashlib import sha256
from pathlib import Path

import dagster as dg

from benchmarks.measurement import ROOT, measured
from benchmarks.ours import materialized, start_spark, use_home
from benchmarks.photographs import CACHE, Photographs, landing_of
from benchmarks.task import read_task, timed

HOMES = CACHE / "homes"
TABLE_CODE = ("image_assets/*.py", "image_assets/images/*.py", "image_assets/data/*.py", "resources/**/*.py")


def code_files() -> list[Path]:
    """All code that determines the content of a home's tables."""
    return sorted(file for pattern in TABLE_CODE for file in ROOT.glob(pattern))


def code_digest() -> str:
    """A short hash of the code that determines the content of a home's tables."""
    return sha256(b"\0".join(file.read_bytes() for file in code_files())).hexdigest()[:10]


def home_of(photographs: Photographs, count: int) -> tuple[Path, Path]:
    """A home whose tables contain `count` photographs, and its landing folder. Do not modify them."""
    landing = landing_of(photographs, count)
    home = HOMES / f"{photographs.folder.name}-{count}-{code_digest()}"
    finished = home.with_suffix(".finished")
    if not finished.exists():
        for old in HOMES.glob(f"{photographs.folder.name}-{count}-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        run = measured([sys.executable, "-m", "benchmarks.homes", "build", str(landing), str(home), ""])
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
    start_spark()
    with timed(), dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        materialized(data_assets(), instance)


if __name__ == "__main__":
    main()
