"""Which images belong to the same duplicate group: the same photograph, or the same value in a given column."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from image_assets.data.given_labels import given_attributes
from image_assets.data.image_files import IMAGE_KEYS
from image_assets.images.fingerprints import HASHES, VARIANTS, read_thumbnail
from image_assets.images.near_duplicates import Candidates, to_candidates
from image_assets.images.same_photograph import same_photographs
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.new_rows import NewRows
from resources.duplicates import DuplicateRules

HASHES_AT_ONCE = 100_000  # images whose hashes are Python objects at the same time
COMPARED_AT_ONCE = 4096  # pairs whose thumbnails are decoded at the same time: 100 MB
VARIANT_MATRICES = np.stack([variant.matrix for variant in VARIANTS])
BURST = timedelta(seconds=5)  # longest time between two photographs of a burst

Column = Any  # of a DataFrame: the types of pandas cannot tell it from a DataFrame
Pairs = np.ndarray  # positions of images (2, p) that belong together
NO_PAIRS: Pairs = np.empty((2, 0), dtype=np.int64)


def to_pairs(delta_tables: DeltaTables, images: pd.DataFrame, new: np.ndarray, rules: DuplicateRules) -> Pairs:
    """The pairs of images that belong together by the rules; near duplicates only with at least one new image.

    Args:
        delta_tables: The tables, which have the images' fingerprints.
        images: One row per image, with `path` and `image_id`.
        new: Which of them (n,) are new.
        rules: What belongs together.
    """
    pairs = [NO_PAIRS]
    if rules.duplicates != "off":
        pairs.append(with_equal(images["image_id"]))
    if rules.duplicates == "near":
        pairs.append(same_photograph_pairs(delta_tables, images["image_id"], new))
    if rules.group_by:
        pairs.append(with_equal(given_groups(delta_tables, images, rules.group_by)))
    return np.concatenate(pairs, axis=1)


def to_groups(count: int, pairs: Pairs) -> np.ndarray:
    """A group number (count,) for each image: those linked by pairs share one."""
    links = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def with_equal(values: Column) -> Pairs:
    """Pairs that link all positions with the same value; nulls are equal to nothing."""
    codes = pd.factorize(values)[0]
    positions = np.argsort(codes, kind="stable")
    positions = positions[codes[positions] >= 0]
    linked = codes[positions[1:]] == codes[positions[:-1]]
    return np.stack([positions[:-1][linked], positions[1:][linked]])


def same_photograph_pairs(
    delta_tables: DeltaTables, image_ids: Column, new: np.ndarray, splits: Column | None = None
) -> Pairs:
    """The pairs with a new image that show the same photograph: hashes propose them, thumbnails decide.

    With `splits`, only images in different splits are compared; those without a split are compared with none.
    """
    if not new.any():
        return NO_PAIRS
    # Sorted: which of many lookalikes are proposed must not depend on the order of the rows.
    values = pa.array(image_ids, pa.string(), from_pandas=True)
    ids = values.unique().drop_null().sort()
    options = pc.SetLookupOptions(ids)
    codes = pc.call_function("index_in", [values], options).fill_null(-1).to_numpy(zero_copy_only=False)
    rows = delta_tables.read(FEATURED_IMAGES, [*IMAGE_KEYS, "hashes"])
    # Old rows whose file is gone have no fingerprint, and those of another release could not be compared.
    lengths = pc.call_function("binary_length", [rows["hashes"]]).fill_null(0).to_numpy()
    found = pc.call_function("index_in", [rows["image_id"]], options).fill_null(-1).to_numpy()
    usable = np.flatnonzero((lengths == 8 * HASHES) & (found >= 0))
    compared, first_rows = np.unique(found[usable], return_index=True)
    if not len(compared):
        return NO_PAIRS
    rows = rows.take(pa.array(usable[first_rows]))
    parts = (part["hashes"].to_pylist() for part in rows.to_batches(max_chunksize=HASHES_AT_ONCE))
    hashes = np.concatenate([np.frombuffer(b"".join(part), dtype=">u8") for part in parts])
    is_new, positions = np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=np.int64)
    is_new[codes[new & (codes >= 0)]] = True
    backwards = np.flatnonzero(codes >= 0)[::-1]
    positions[codes[backwards]] = backwards  # the first of equal images is written last
    positions = positions[compared]
    candidates = to_candidates(hashes.reshape(-1, HASHES), is_new[compared])
    if splits is not None:
        of_images = pd.factorize(splits)[0][positions]
        first, second = of_images[candidates.first], of_images[candidates.second]
        candidates = candidates.of((first >= 0) & (second >= 0) & (first != second))
    same = candidates.of(verified(delta_tables, candidates, rows.select(IMAGE_KEYS)))
    return np.stack([positions[same.first], positions[same.second]])


def verified(delta_tables: DeltaTables, candidates: Candidates, images: pa.Table) -> np.ndarray:
    """Which candidates (p,) show the same photograph; `images` has path and image_id of the images by number.

    Pairs whose images are linked by other pairs are left out: a hundred copies of a photograph take 99 comparisons.
    """
    same = np.zeros(len(candidates), dtype=bool)
    numbers = np.unique(np.concatenate([candidates.first, candidates.second]))
    some = zip(*(images[name].take(pa.array(numbers)).to_pylist() for name in IMAGE_KEYS), strict=True)
    keys = dict(zip(numbers.tolist(), some, strict=True))
    thumbnails = read_thumbnails(delta_tables, [*keys.values()])
    left, groups = np.arange(len(candidates)), np.arange(len(images))
    with delta_tables.progress_line("compared", len(candidates), "pairs of similar images") as progress:
        while len(left):
            linking = spanning(groups[candidates.first[left]], groups[candidates.second[left]])
            for start in range(0, len(linking), COMPARED_AT_ONCE):
                some = left[linking[start : start + COMPARED_AT_ONCE]]
                same[some] = are_same(candidates.of(some), keys, thumbnails)
                progress.reach(len(candidates) - len(left) + start + len(some))
            linked = candidates.of(same)
            groups = to_groups(len(images), np.stack([linked.first, linked.second]))
            left = np.delete(left, linking)
            left = left[groups[candidates.first[left]] != groups[candidates.second[left]]]
        progress.reach(len(candidates))
    return same


def spanning(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Positions of pairs (p,) that link all that they can without a cycle; earlier pairs are preferred."""
    count = 1 + int(max(first.max(), second.max()))
    low, high = np.minimum(first, second), np.maximum(first, second)
    positions = np.unique(low * count + high, return_index=True)[1]
    pairs = coo_array((positions + 1.0, (low[positions], high[positions])), shape=(count, count))
    return np.sort(minimum_spanning_tree(pairs).data).astype(np.int64) - 1


def are_same(pairs: Candidates, keys: dict[int, tuple[str, str]], thumbnails: dict[str, bytes]) -> np.ndarray:
    """Which pairs (p,) show the same photograph, by their images' keys and thumbnails."""

    def pixels(some: np.ndarray) -> np.ndarray:
        return np.stack([read_thumbnail(thumbnails[keys[number][1]]) for number in some])

    second = pixels(pairs.second)
    second[pairs.mirrored] = second[pairs.mirrored, :, ::-1]
    return same_photographs(pixels(pairs.first), second, VARIANT_MATRICES[pairs.variant])


def read_thumbnails(delta_tables: DeltaTables, keys: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """The thumbnails of images (path, image_id) by image_id; only the row groups with one of them are read."""
    if not keys:
        return {}
    files = table_files(delta_tables.uri(FEATURED_IMAGES), delta_tables.version_to_read(FEATURED_IMAGES)).files
    rows = NewRows(tuple(file.url for file in files), None, FEATURED_IMAGES.keys, wanted=frozenset(keys))
    found = rows.read(["image_id", "thumbnail"])
    return dict(zip(found["image_id"].to_pylist(), found["thumbnail"].to_pylist(), strict=True))


def given_groups(delta_tables: DeltaTables, images: pd.DataFrame, column: str) -> Column:
    """Each image's value in a column of the label table or of featured_images; null if it has none.

    Raises:
        ValueError: No image has a value there.
    """
    if column in FEATURED_IMAGES.columns.fieldNames():
        rows = delta_tables.read(FEATURED_IMAGES, [*IMAGE_KEYS, column]).to_pandas().drop_duplicates(IMAGE_KEYS)
        values: Column = images.merge(rows, on=IMAGE_KEYS, how="left")[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            values = to_bursts(values)
    else:
        by_path = given_attributes(delta_tables, column)
        values = pd.Series([by_path.get(path) for path in images["path"]], dtype=object)
    if values.isna().all() and len(values):
        raise ValueError(
            f"IMAGE_ASSETS_GROUP_BY is {column!r}, but no image has a value in such a column: expected the name of a "
            "column of the label table (IMAGE_ASSETS_LABELS) or of featured_images. Correct or unset the variable"
        )
    return values


def to_bursts(times: Column) -> Column:
    """A number for each time, the same for times that follow each other closely; null if there is no time."""
    ordered = pd.to_datetime(times.dropna(), utc=True).sort_values()
    return (ordered.diff() > BURST).cumsum().reindex(times.index)
