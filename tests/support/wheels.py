"""Wheels of this project, built from a folder of its source."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
PACKAGES = ("gallery", "image_assets", "resources", "scripts", "sensors")


def package_files() -> set[Path]:
    """Every file of the packages in this checkout, relative to its root."""
    files = {file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()}
    return {file.relative_to(ROOT) for file in files if "__pycache__" not in file.parts}


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source folder, which must be a copy because building leaves files behind."""
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("image_assets-*.whl")
    return wheel
