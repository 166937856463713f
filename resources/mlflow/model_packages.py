"""The folder in which packages of model versions are written."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from pydantic import Field

from resources.files.file_system import is_url
from resources.setting_values import HALF_URL


class ModelPackages(dg.ConfigurableResource):
    """The default folder for model packages."""

    root: str = Field(description="The default folder for model packages.")

    def write(self, name: str, fill: Callable[[Path], None], elsewhere: str | None = None) -> Path:
        """Creates a folder, lets `fill` write the files, and returns it; if `fill` fails, nothing is left behind.

        Raises:
            FileExistsError: The folder exists.
            ValueError: It is a URL.
        """
        if elsewhere and (is_url(elsewhere) or HALF_URL.match(elsewhere)):
            raise ValueError(f"{elsewhere!r} is a URL: expected a folder on this machine, such as /srv/flowers_v2")
        folder = Path(elsewhere or Path(self.root, name)).expanduser().absolute()
        if folder.exists():
            raise FileExistsError(
                f"{folder} already exists, so nothing was written: delete it or choose another folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            unfinished = Path(scratch, folder.name)
            unfinished.mkdir()
            fill(unfinished)
            return unfinished.rename(folder)
