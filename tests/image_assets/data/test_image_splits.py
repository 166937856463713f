"""Near duplicates share a split, assignments stay, and every label is in every split."""

import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_assets.data.duplicate_groups import with_equal
from image_assets.data.image_splits import CONFLICT, SplitConfig, splits_metadata, with_splits
from image_assets.schemas import IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from tests.gallery.small_home import write_photographs

COLUMNS = [name for name in IMAGE_SPLITS.columns.fieldNames() if name != "given_split"]  # which folders give
SHARES = SplitConfig().shares
NEAR = 4  # bits in which the hashes of the images here differ if they are near duplicates
NONE = pd.DataFrame(columns=COLUMNS)
FAR_APART = np.random.default_rng(0).integers(0, 2**63, 25, dtype=np.int64).tolist()


def images(labels: list[str], seed: int = 0, hashes: list[int] | None = None) -> pd.DataFrame:
    """New images with these labels and random hashes, far from each other."""
    chance = np.random.default_rng(seed)
    numbers = hashes or [int(number) for number in chance.integers(0, 2**63, len(labels), dtype=np.int64)]
    ids = [chance.bytes(32).hex() for _ in labels]
    index = {label: number for number, label in enumerate(sorted(set(labels)))}
    return pd.DataFrame(
        {
            "path": [f"file:/{label}/{image_id}.png" for label, image_id in zip(labels, ids, strict=True)],
            "image_id": ids,
            "label": labels,
            "label_index": [index[label] for label in labels],
            "perceptual_hash": [f"{number:016x}" for number in numbers],
            "mirrored_hash": [None for _ in numbers],
        }
    )


def near_pairs(known: pd.DataFrame, new: pd.DataFrame) -> np.ndarray:
    """The pairs of equal images, and of those with similar hashes of which one is new, by comparing all."""
    images = pd.concat([known, new])
    plain, mirrored = (
        [None if text is None else int(text, 16) for text in images[name]]
        for name in ("perceptual_hash", "mirrored_hash")
    )
    hashes = np.array([[one or 0, other or one or 0] for one, other in zip(plain, mirrored, strict=True)], np.uint64)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).reshape(-1, 2, 64).astype(np.int64)
    pairs = [with_equal(images["image_id"])]
    for one, other in ((0, 0), (0, 1), (1, 0)):
        distance = bits[:, one] @ (1 - bits[:, other]).T + (1 - bits[:, one]) @ bits[:, other].T
        first, second = np.nonzero(distance <= NEAR)
        hashed = np.array([text is not None for text in plain], bool)
        pairs.append(np.stack([first, second])[:, (second >= len(known)) & hashed[first] & hashed[second]])
    return np.concatenate(pairs, axis=1)


def assigned(new: pd.DataFrame, known: pd.DataFrame = NONE, seed: int = 0) -> pd.DataFrame:
    existing = known if "current" in known else known.assign(current=True)
    return with_splits(new, existing, near_pairs(known, new), SplitConfig().shares, seed)[COLUMNS]


@pytest.mark.parametrize("seed", range(5))
def test_twenty_images_of_each_label_are_in_every_split_in_about_the_shares(seed: int) -> None:
    splits = assigned(images(["ball", "cube", "cone"] * 20, seed), seed=seed)
    counts = splits.groupby(["label", "split"]).size().unstack(fill_value=0)
    assert (counts["training"].between(13, 15)).all()
    assert (counts[["validation", "test"]].min().min(), counts[["validation", "test"]].max().max()) >= (2, 2)
    assert (counts[["validation", "test"]] <= 4).all(axis=None)
    assert splits["reason"].isna().all()


def test_shares_are_kept_when_images_come_one_by_one() -> None:
    splits = NONE
    for number in range(40):
        new = images(["ball"], seed=number)
        splits = new_known(splits, assigned(new, splits))
    assert splits["split"].value_counts().to_dict() == {"training": 28, "validation": 6, "test": 6}


def new_known(known: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([known, more], ignore_index=True) if len(known) else more


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_share_group_and_split(seed: int) -> None:
    chance = np.random.default_rng(seed)
    originals = [int(number) for number in chance.integers(0, 2**63, 30, dtype=np.int64)]
    copies = [number ^ 0b1011 for number in originals]
    splits = assigned(images(["ball", "cube"] * 30, seed, hashes=originals + copies))
    first, second = splits.iloc[:30].reset_index(), splits.iloc[30:].reset_index()
    assert (first["split"] == second["split"]).all()
    assert (first["duplicate_group"] == second["duplicate_group"]).all()
    assert splits["duplicate_group"].nunique() == 30
    assert set(splits["duplicate_group"]) <= set(splits["image_id"]), "a group is named after one of its images"


def test_an_assignment_does_not_depend_on_the_order_of_arrival_in_one_batch() -> None:
    new = images(["ball", "cube"] * 20)
    one = assigned(new).set_index("image_id").sort_index()
    other = assigned(new.sample(frac=1, random_state=1)).set_index("image_id").sort_index()
    assert one["split"].equals(other["split"])
    assert not one["split"].equals(assigned(new, seed=1).set_index("image_id").sort_index()["split"])


def test_a_new_near_duplicate_joins_the_split_of_its_group() -> None:
    known = assigned(images(["ball"] * 20))
    for _, image in known.iterrows():
        copy = images(["ball"], seed=99, hashes=[int(image["perceptual_hash"], 16) ^ 0b11])
        (row,) = assigned(copy, known).itertuples()
        assert (row.split, row.duplicate_group) == (image["split"], image["duplicate_group"])


def test_an_image_that_joins_groups_of_different_splits_is_set_aside_and_moves_none_of_them() -> None:
    left, between, right = 0b1111 << 8, 0, 0b1111
    apart = assigned(images(["ball", "ball"], hashes=[left, right]))
    known = apart.assign(split=["training", "test"])
    (row,) = assigned(images(["ball"], seed=7, hashes=[between]), known).itertuples()
    assert (row.split, row.reason) == (None, CONFLICT)
    known = new_known(known, assigned(images(["ball"], seed=7, hashes=[between]), known))
    (later,) = assigned(images(["ball"], seed=8, hashes=[between ^ 1]), known).itertuples()
    assert (later.split, later.reason) == (None, CONFLICT), "what joins them later would leak as well"


def test_images_without_a_hash_are_groups_of_their_own() -> None:
    unhashed = images(["ball"] * 4).assign(perceptual_hash=None)
    known = new_known(assigned(images(["ball"] * 2)), assigned(unhashed))
    splits = new_known(known, assigned(images(["ball"] * 4, seed=1).assign(perceptual_hash=None), known))
    assert splits["duplicate_group"].equals(splits["image_id"])
    assert splits["split"].notna().all()


def test_new_images_make_up_for_what_their_label_lacks() -> None:
    known = images(["ball", "cube"] * 500)
    known = known.assign(duplicate_group=known["image_id"], split="training", reason=None, duplicates="near")[COLUMNS]
    splits = assigned(images(["ball", "cube"] * 50, seed=1), known)
    assert set(splits["split"]) == {"validation", "test"}


def test_a_mirrored_twin_shares_the_split_also_under_another_label_and_when_it_comes_later() -> None:
    known = images(["ball"] * 20).assign(mirrored_hash=[f"{number:016x}" for number in FAR_APART[:20]])
    twins = images(["cube"] * 20, seed=1)
    twins = twins.assign(perceptual_hash=known["mirrored_hash"], mirrored_hash=known["perceptual_hash"])
    together = assigned(new_known(known, twins))
    assert (together["split"][:20].tolist(), together["split"].nunique()) == (together["split"][20:].tolist(), 3)
    first = assigned(known)
    later = assigned(twins, first)
    assert later[["split", "duplicate_group"]].equals(first[["split", "duplicate_group"]])


def test_images_that_are_gone_leave_their_split_to_others() -> None:
    known = assigned(images(["ball"] * 20))
    known = known.assign(current=known["split"] != "test")
    assert set(assigned(images(["ball"] * 2, seed=1), known)["split"]) == {"test"}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, {"training"}), (2, {"training", "test"}), (3, {"training", "test", "validation"}), (4, set(SHARES))],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_three_groups_of_a_label_are_enough_for_every_split(groups: int, expected: set[str], one_by_one: bool) -> None:
    new, splits = images(["ball"] * groups + ["cube"] * 40), NONE
    for batch in [new.iloc[[place]] for place in range(len(new))] if one_by_one else [new]:
        splits = new_known(splits, assigned(batch.reset_index(drop=True), splits))
    assert set(splits["split"][splits["label"] == "ball"]) == expected


@pytest.mark.slow
def test_500_labels_and_100000_images_are_assigned_in_seconds() -> None:
    new = images([f"label {number % 500}" for number in range(100_000)])
    started = time.process_time()
    splits = with_splits(new, NONE.assign(current=True), with_equal(new["image_id"]), SplitConfig().shares)
    counts = splits.groupby(["label", "split"]).size().unstack()
    assert time.process_time() - started < 30
    assert (counts == [30, 140, 30]).all(axis=None)


@st.composite
def arrivals(draw: st.DrawFn) -> list[pd.DataFrame]:
    """Images of a few labels in groups of several sizes, each image with its group's number, in a few batches."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=25))
    hashes = [number for number, size in zip(FAR_APART, sizes, strict=False) for _ in range(size)]
    of_groups = draw(st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes)))
    new = images([label for label, size in zip(of_groups, sizes, strict=True) for _ in range(size)], hashes=hashes)
    new = new.assign(group=hashes).iloc[draw(st.permutations(range(len(new))))]
    cuts = sorted(draw(st.lists(st.integers(1, len(new)), max_size=3)))
    batches = [new.iloc[start:end] for start, end in itertools.pairwise([0, *cuts, len(new)])]
    return [batch.reset_index(drop=True) for batch in batches if len(batch)]


@settings(max_examples=60, deadline=None)
@given(arrivals())
def test_groups_stay_whole_and_their_splits_stay(batches: list[pd.DataFrame]) -> None:
    splits = NONE
    for batch in batches:
        splits = new_known(splits, assigned(batch, splits))
    everything = pd.concat(batches, ignore_index=True)
    groups = everything["group"].nunique()
    assert splits.groupby(everything["group"])["split"].nunique().eq(1).all()
    assert splits["duplicate_group"].nunique() == groups
    several = everything.groupby("label")["group"].nunique() >= 3
    in_splits = splits.groupby("label")["split"].nunique()
    assert (in_splits[several] == 3).all(), "three groups are in every split, however they come"


@settings(max_examples=60, deadline=None)
@given(arrivals(), st.integers(0, 3))
def test_shares_are_kept_within_one_group_in_whatever_order_a_batch_arrives(
    batches: list[pd.DataFrame], seed: int
) -> None:
    new = pd.concat(batches, ignore_index=True)
    splits = assigned(new, seed=seed)
    for label, of_label in splits.groupby("label"):
        largest = new[new["label"] == label]["group"].value_counts().max()
        for split, share in SHARES.items():
            assert (of_label["split"] == split).sum() < share * len(of_label) + largest
    other = assigned(new.iloc[::-1].reset_index(drop=True), seed=seed)
    assert other.set_index("image_id")["split"].sort_index().equals(splits.set_index("image_id")["split"].sort_index())


def test_shares_are_scaled_to_one() -> None:
    shares = SplitConfig(training=0.5, validation=0.25, test=0.5).shares
    assert shares == pytest.approx({"training": 0.4, "validation": 0.2, "test": 0.4})


def test_splits_are_counted_and_drawn(delta_tables: DeltaTables, landing: Path) -> None:
    assert splits_metadata(delta_tables) == {}
    write_photographs(delta_tables, landing, 12)
    found = splits_metadata(delta_tables)
    assert {name: found[name].value for name in ("images_training", "images_test")} == {
        "images_training": 10,
        "images_test": 2,
    }
    assert str(found["splits"].value).startswith("12 labeled images")
