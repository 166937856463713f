"""How many images each split has, and of which labels."""

import dagster as dg

from image_assets.bar_pictures import by_label, stacked_bars
from image_assets.pictures import to_markdown
from image_assets.schemas import IMAGE_SPLITS
from image_assets.split_soundness import SPLITS
from resources.thin_tables import ThinTables

SET_ASIDE = "set_aside"  # in no split


def splits_look(thin_tables: ThinTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of images in each split, and a figure of them by label."""
    images = thin_tables.read(IMAGE_SPLITS, ["label", "split"]).to_pandas().fillna({"split": SET_ASIDE})
    metadata: dict[str, dg.MetadataValue] = {
        f"images_{split}": dg.MetadataValue.int(int(count)) for split, count in images["split"].value_counts().items()
    }
    counts = by_label(images, "split", (*SPLITS, SET_ASIDE))
    if len(counts):
        picture = stacked_bars(counts, "images of each label, by split")
        metadata["splits"] = dg.MetadataValue.md(to_markdown(picture, f"{len(images):,} labelled images"))
    return metadata
