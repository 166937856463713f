"""Which images must share a split: the same photograph, and images with the same value in a column."""

from typing import Literal, get_args

import dagster as dg
from pydantic import Field

Duplicates = Literal["near", "exact", "off"]
DUPLICATES = get_args(Duplicates)


class DuplicateRules(dg.ConfigurableResource):
    """Which images share a duplicate group, and therefore a split."""

    duplicates: Duplicates = Field(
        default="near",
        description="`near`: the same photograph, also if it was resized, cropped, rotated a little or brightened. "
        "`exact`: identical files. `off`: none.",
    )
    group_by: str = Field(
        default="",
        description="A column of the label table or of featured_images; images with the same value share a group.",
    )
