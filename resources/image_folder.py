"""The folder where image files land."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from pydantic import Field

from resources.file_system import SUFFIXES, ImageFile, list_files, to_path


class ImageFolder(dg.ConfigurableResource):
    """The landing folder: one sub-folder for each label, photographs without a label directly in it."""

    root: str
    settle_seconds: float = Field(default=2.0, ge=0, description="A file this long unchanged is taken as whole.")
    content_limit_bytes: int = Field(
        default=512 * 1024**2, gt=0, description="Of larger files the tables hold the path only, no content."
    )
    size_limit_bytes: int = Field(default=16 * 1024**3, gt=0, description="Larger files are quarantined.")
    decode_seconds: float = Field(
        default=10, gt=0, description="Time to decode an image, and 1 s for each 16 MB of it."
    )
    decode_memory_bytes: int = Field(default=1024**3, gt=0, description="Memory to decode an image in.")

    @property
    def path(self) -> str:
        """The folder, as the paths of its files begin."""
        return to_path(str(Path(self.root)).encode("utf-8", "surrogateescape"))

    def list_files(self) -> list[ImageFile]:
        """Every image file in the folder; FileNotFoundError when there is no such folder."""
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(
                f"the landing folder {self.root} does not exist: make it, with one sub-folder of photographs "
                "for each label, or name another one by IMAGE_ASSETS_LANDING"
            )
        return list(list_files(root))

    def settled(self, files: Sequence[ImageFile], sleep: Callable[[float], None] = time.sleep) -> list[ImageFile]:
        """Those of the files that are no longer being written: as old as the settle period, or still after it."""
        if len(self.old_enough(files)) == len(files):
            return list(files)
        sleep(self.settle_seconds)
        still = set(self.list_files())
        return [file for file in files if file in still]

    def old_enough(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """Those of the files that nobody changed within the settle period; a time in the future tells nothing."""
        now = datetime.now(UTC)
        since = now - timedelta(seconds=self.settle_seconds)
        return [file for file in files if not since < file.modification_time <= now]

    def require_files(self) -> None:
        """FileNotFoundError when the folder holds no image file at all."""
        if not self.list_files():
            raise FileNotFoundError(
                f"the landing folder {self.root} holds no image file: expected files ending in {', '.join(SUFFIXES)}, "
                "in one sub-folder for each label"
            )
