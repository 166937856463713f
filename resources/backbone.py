"""Where the classifier's backbone gets its weights."""

from hashlib import sha256
from pathlib import Path

import dagster as dg
from pydantic import Field

WEIGHT_FILES = {"tensorflow": "mobilenet_v2_no_top.weights.h5", "torch": "mobilenet_v2_features.pth"}


class Backbone(dg.ConfigurableResource):
    """MobileNetV2's weights: `auto`, `imagenet`, `none`, or a folder that holds a weight file for each framework."""

    source: str = Field(default="auto", description="auto, imagenet, none, or a folder with weight files.")

    def identity(self, framework: str) -> str:
        """The same text for the same weights: the source's name, or the weight file's hash.

        FileNotFoundError when the folder does not hold the framework's weight file.
        """
        if self.source in ("auto", "imagenet", "none"):
            return self.source
        weights = Path(self.source) / WEIGHT_FILES[framework]
        if not weights.is_file():
            found = ", ".join(sorted(file.name for file in Path(self.source).glob("*"))) or "nothing"
            raise FileNotFoundError(
                f"IMAGE_ASSETS_BACKBONE is the folder {self.source}, which holds {found}: expected "
                f"{weights.name}, or one of auto, imagenet and none in place of a folder"
            )
        return sha256(weights.read_bytes()).hexdigest()
