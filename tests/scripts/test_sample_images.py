"""The sample images have five labels, two broken files, one near duplicate and three images without a label."""

from itertools import combinations
from pathlib import Path

import pytest

from image_assets.images.features import Features, to_features
from image_assets.images.formats import UnreadableImage
from scripts.sample_images import write_sample_images

LABELS = {"checkers", "circles", "spots", "stripes", "triangles"}
DUPLICATES = {"circles/circles_000.jpg", "circles/circles_000_copy.jpg"}


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample_images")
    write_sample_images(folder)
    return folder


@pytest.fixture(scope="module")
def features(sample_folder: Path) -> dict[str, Features | str]:
    """By name within the folder: the features, or the reason why the file has none."""
    found: dict[str, Features | str] = {}
    for name, content in contents(sample_folder).items():
        try:
            found[name] = to_features(content)
        except UnreadableImage as error:
            found[name] = error.reason
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_label_has_as_many_images_and_three_have_none(features: dict[str, Features | str]) -> None:
    names = [name for name, found in features.items() if isinstance(found, Features)]
    assert {name.split("/")[0] for name in names if "/" in name} == LABELS
    for label in LABELS:
        assert sum(name.startswith(f"{label}/") for name in set(names) - {"circles/circles_000_copy.jpg"}) == 60
    assert sum("/" not in name for name in names) == 3


def test_two_files_are_broken(features: dict[str, Features | str]) -> None:
    broken = {name: found for name, found in features.items() if isinstance(found, str)}
    assert broken == {"stripes/cut_in_half.jpg": "undecodable", "spots/not_an_image.jpg": "not_an_image"}


def test_exactly_one_pair_is_near_duplicates(features: dict[str, Features | str]) -> None:
    whole = {name: found for name, found in features.items() if isinstance(found, Features)}
    plain = {name: int(found.perceptual_hash, 16) for name, found in whole.items()}
    mirrored = {name: int(found.mirrored_hash, 16) for name, found in whole.items()}
    alike = [
        {one, other}
        for one, other in combinations(whole, 2)
        if any((hashes[one] ^ plain[other]).bit_count() <= 6 for hashes in (plain, mirrored))
    ]
    assert alike == [DUPLICATES]


def test_formats_and_sizes_vary(features: dict[str, Features | str]) -> None:
    whole = [found for found in features.values() if isinstance(found, Features)]
    assert {found.format for found in whole} == {"JPEG", "PNG", "WEBP"}
    assert len({(found.width, found.height) for found in whole}) > 4
    assert not any(found.decode_warning for found in whole)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_sample_images(tmp_path / name, per_label=4, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert first["spots/spots_000.jpg"] != other["spots/spots_000.jpg"]


def test_existing_files_stay_untouched(tmp_path: Path) -> None:
    write_sample_images(tmp_path, per_label=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    write_sample_images(tmp_path, per_label=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == before


def test_a_file_that_was_cut_is_written_again(tmp_path: Path) -> None:
    write_sample_images(tmp_path, per_label=2)
    file = tmp_path / "spots" / "spots_000.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    write_sample_images(tmp_path, per_label=2)
    assert file.read_bytes() == whole
