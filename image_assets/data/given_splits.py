"""The splits that folders give: kept as they are. Splits that no folder gives are taken from the training folder."""

from collections.abc import Callable, Mapping

import pandas as pd

from image_assets.data.folder_layout import FolderLayout

TRAINING = "training"
GIVEN_COLUMNS = ["given_split", "split", "reason"]  # what a change of the layout changes

# Assigns new images, next to existing ones, with these shares.
Assign = Callable[[pd.DataFrame, pd.DataFrame, Mapping[str, float]], pd.DataFrame]


def with_given_splits(
    new: pd.DataFrame, existing: pd.DataFrame, shares: Mapping[str, float], layout: FolderLayout, assign: Assign
) -> pd.DataFrame:
    """The new images with `given_split`, `duplicate_group`, `split` and `reason`.

    Images keep the split of their folder, near duplicates or not: leaks between given splits are reported, not moved.
    Where a split has no folder, images of the training folder are assigned to training and to that split as usual,
    in the shares that these have. Images outside of split folders are assigned last.

    Args:
        new: One row per image, in any order.
        existing: The images that have a split already, and whether each is `current`.
        shares: The share of each split.
        layout: Gives the splits.
        assign: Assigns images to splits by their duplicate groups and labels.
    """
    given = new["path"].map(layout.given_split)
    new = new.assign(given_split=given.astype(object).where(given.notna(), None))
    divided = (given == TRAINING) & bool(layout.missing_splits)
    kept = given.notna() & ~divided
    assigned = []
    if any(kept):
        rows = assign(new.loc[kept], existing, shares)
        assigned.append(rows.assign(split=rows["given_split"], reason=None))
    if any(divided):
        some = {split: share for split, share in shares.items() if split in (TRAINING, *layout.missing_splits)}
        scaled = {split: share / sum(some.values()) for split, share in some.items()}
        there = with_rows(existing, assigned)
        # Images of given splits must not count: the shares are those of the training folder.
        there = there.assign(current=there["current"].astype(bool) & there["split"].isin(scaled))
        rows = assign(new.loc[divided], there, scaled)
        # A near duplicate of an image in another given split stays where its folder says.
        stays = ~rows["split"].isin(scaled)
        rows = rows.assign(split=rows["split"].mask(stays, TRAINING), reason=rows["reason"].mask(stays, None))
        assigned.append(rows)
    outside = given.isna()
    if any(outside) or not len(new):
        assigned.append(assign(new.loc[outside], with_rows(existing, assigned), shares))
    return pd.concat(assigned, ignore_index=True)


def with_rows(existing: pd.DataFrame, assigned: list[pd.DataFrame]) -> pd.DataFrame:
    """The existing images and those that were just assigned, which are current."""
    rows = [rows[[name for name in existing.columns if name != "current"]].assign(current=True) for rows in assigned]
    return pd.concat([existing, *rows], ignore_index=True) if rows else existing


def reassigned(
    existing: pd.DataFrame, shares: Mapping[str, float], layout: FolderLayout, assign: Assign
) -> pd.DataFrame:
    """The existing images whose given split or split changes with the layout, as in a new home; their keys and splits.

    Images outside of split folders keep their split.
    """
    given = existing["path"].map(layout.given_split)
    kept = existing.loc[given.isna()]
    parts, there = [kept.assign(given_split=None, reason=None)], kept
    # Deleted images come last: they fill no split.
    for is_current in (True, False):
        moved = existing.loc[given.notna() & (existing["current"].astype(bool) == is_current)]
        if len(moved):
            moved = moved.drop(columns=["current", "duplicate_group", "split", "given_split"])
            parts.append(with_given_splits(moved, there, shares, layout, assign))
            there = with_rows(there, parts[-1:])
    now = pd.concat(parts, ignore_index=True)
    before = existing[["path", "image_id", "given_split", "split"]]
    both = now.merge(before, on=["path", "image_id"], suffixes=("", "_before"))
    same = (both["split"].fillna("") == both["split_before"].fillna("")) & (
        both["given_split"].fillna("") == both["given_split_before"].fillna("")
    )
    return both.loc[~same, ["path", "image_id", *GIVEN_COLUMNS]]
