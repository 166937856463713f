"""How many images the table of samples holds."""

import dagster as dg
from pydantic import Field


class SampleSize(dg.ConfigurableResource):
    """How many images of each label, and of each folder with images of that label, are sampled."""

    per_label: int = Field(default=8, gt=0, description="Images of each label.")
    per_folder: int | None = Field(
        default=None, gt=0, description="Images of a label from the same folder; no limit by default."
    )
