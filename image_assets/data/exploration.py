"""What the images that are there are like: how they are distributed, and which are there more than once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
import numpy as np
import pandas as pd

from image_assets.contact_sheets import thumbnails, to_caption
from image_assets.current_files import KEYS, current_keys
from image_assets.pictures import contact_sheet, distributions, to_markdown
from image_assets.schemas import FEATURED_IMAGES, IMAGE_SPLITS
from resources.thin_tables import ThinTables

LISTED = 20  # groups in a table
SHOWN = 8  # groups on a contact sheet, one a row
MEMBERS = 4  # files of a group that are named and shown
STEPS = 4  # bars in a figure for each doubling


@dataclass(frozen=True)
class Group:
    """Images that have something in common: how many, and the paths of the first of them."""

    name: str
    files: int
    paths: list[str]


def current_images(thin_tables: ThinTables) -> pd.DataFrame:
    """The images whose files are there now, with their features and duplicate_group, without content."""
    features = [*KEYS, "label", "format", "width", "height", "length"]
    images = thin_tables.read(FEATURED_IMAGES, features).to_pandas()
    groups = thin_tables.read(IMAGE_SPLITS, [*KEYS, "duplicate_group"]).to_pandas()
    return images.merge(current_keys(thin_tables), on=KEYS).merge(groups, on=KEYS, how="left")


def groups_of_several(images: pd.DataFrame, by: str, *differing: str) -> list[Group]:
    """The groups by a column in which each of the others has several values, the largest ones first."""
    several = images[images[by].notna() & images[by].duplicated(keep=False)]
    groups = [
        Group(str(name), len(members), sorted(members["path"])[:MEMBERS])
        for name, members in several.groupby(by)
        if all(len(set(members[column]) - {None}) > 1 for column in differing)
    ]
    return sorted(groups, key=lambda group: (-group.files, group.name))


def to_table(groups: Sequence[Group]) -> dg.TableMetadataValue:
    """The largest groups as a table: how many files, and where the first of them are."""
    columns = [dg.TableColumn("group"), dg.TableColumn("files", "int"), dg.TableColumn("paths")]
    records = [
        dg.TableRecord({"group": group.name, "files": group.files, "paths": "\n".join(group.paths)})
        for group in groups[:LISTED]
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def duplicates(images: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """Metadata with the same image under several paths, images that look the same, and a sheet of both."""
    exact = groups_of_several(images, "image_id", "path")
    near = groups_of_several(images, "duplicate_group", "image_id")
    metadata = {
        "exact_duplicate_groups": dg.MetadataValue.int(len(exact)),
        "near_duplicate_groups": dg.MetadataValue.int(len(near)),
        "exact_duplicates": to_table(exact),
        "near_duplicates": to_table(near),
    }
    shown = [*exact[: SHOWN // 2], *near[: SHOWN // 2]]
    paths = [path for group in shown for path in group.paths]
    if paths:
        looks = thumbnails((path, None) for path in paths)
        tiles = [(look, to_caption(path, None)) for look, path in zip(looks, paths, strict=True)]
        title = f"the largest of {len(exact):,} groups of the same image and {len(near):,} of near duplicates"
        metadata["duplicates"] = dg.MetadataValue.md(to_markdown(contact_sheet(tiles), title))
    return metadata


def distribution_figure(images: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """Metadata with a figure of labels, formats and sizes; nothing for no images."""
    labels = Counter(label or "no label" for label in images["label"])
    if not labels:
        return {}
    picture = distributions(
        labels=labels,
        formats=Counter(images["format"]),
        sizes=Counter(zip(to_steps(images, "width"), to_steps(images, "height"), strict=True)),
        lengths=Counter(to_steps(images, "length")),
    )
    title = f"{len(images):,} images, {len(labels):,} labels"
    return {"distributions": dg.MetadataValue.md(to_markdown(picture, title))}


def to_steps(images: pd.DataFrame, column: str) -> list[float]:
    """The column's values rounded to a few steps for each doubling."""
    values = np.maximum(images[column].to_numpy(float), 1)
    return (2 ** (np.round(np.log2(values) * STEPS) / STEPS)).tolist()
