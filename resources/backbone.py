"""The weights that the classifier's backbone starts from."""

from hashlib import sha256
from pathlib import Path

import dagster as dg
from pydantic import Field


class BackboneWeights(dg.ConfigurableResource):
    """The backbone's weights: `auto`, `imagenet`, `none`, or a folder with a weight file for each framework."""

    source: str = Field(default="auto", description="auto, imagenet, none, or a folder with weight files.")

    def identity(self, weight_file: str) -> str:
        """A text that is equal for equal weights: the source's name, or the SHA-256 of a folder's weight file.

        Args:
            weight_file: The name of the file in the folder, which differs by framework.

        Raises:
            FileNotFoundError: The folder does not hold the file.
        """
        if self.source in ("auto", "imagenet", "none"):
            return self.source
        weights = Path(self.source) / weight_file
        if not weights.is_file():
            found = ", ".join(sorted(file.name for file in Path(self.source).glob("*"))) or "nothing"
            raise FileNotFoundError(
                f"IMAGE_ASSETS_BACKBONE is the folder {self.source}, which holds {found}: expected "
                f"{weights.name}, or one of auto, imagenet and none instead of a folder"
            )
        return sha256(weights.read_bytes()).hexdigest()
