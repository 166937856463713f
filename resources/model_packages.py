"""Packages of model versions, as folders."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from pydantic import Field


class ModelPackages(dg.ConfigurableResource):
    """The folder in which packages lie, unless another place is named."""

    root: str = Field(description="Where packages are written.")

    def write(self, name: str, fill: Callable[[Path], None], elsewhere: str | None = None) -> Path:
        """The folder that a function filled; it gets its name when all is in it, and is not there when it failed."""
        folder = Path(elsewhere or Path(self.root, name)).expanduser().absolute()
        if folder.exists():
            raise FileExistsError(f"{folder} is there already, nothing was written: remove it, or name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            filled = Path(scratch, folder.name)
            filled.mkdir()
            fill(filled)
            return filled.rename(folder)
