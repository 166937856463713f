"""Tests of loaders: every photograph is fed with Pillow's pixels, and ours stores what it decoded."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.feeding import SEEN_EVERY, Batch, feed, to_pillow_pixels
from benchmarks.loader import require_fed
from benchmarks.outputs import WrongOutput
from benchmarks.photographs import SMALL, files_in, number_of, write
from benchmarks.project_loader import NAME, ProjectEpochs, undecoded_epoch
from image_assets.images.cached_pixels import to_cached
from resources.delta.petastorm_caches import MANIFEST, Cache, PetastormCaches
from resources.delta.row_groups import Content
from tests.support.rank_programs import Alone

COUNT = SEEN_EVERY + 1


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    write(SMALL, tmp_path / "landing", range(COUNT))
    return tmp_path / "landing"


@pytest.fixture
def images(landing: Path) -> list[Batch]:
    """The batches of a correct loader, 16 images each."""
    files = sorted(files_in(landing), key=number_of)
    parts = [files[start : start + 16] for start in range(0, COUNT, 16)]
    return [(np.stack([*map(to_pillow_pixels, part)]), np.array([*map(number_of, part)])) for part in parts]


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the harness expects the report."""
    monkeypatch.setenv("BENCHMARK_ANSWER", str(tmp_path / "answer.json"))
    return tmp_path / "answer.json"


def cache_of(landing: Path, root: Path, content: Content) -> Cache:
    """A cache with two row groups, as Petastorm reads it."""
    files = sorted(files_in(landing), key=number_of)
    contents = [file.read_bytes() for file in files]
    rows = [
        {
            "image_id": sha256(image).hexdigest(),
            "content": to_cached(image, 224, content, "rgb"),
            "label_index": number_of(file),
        }
        for file, image in zip(files, contents, strict=True)
    ]
    folder = root / NAME
    folder.mkdir(parents=True)
    file = folder / "part-0.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=16)
    manifest = {"rows": COUNT, "files": {file.name: file.stat().st_size}, "content": content, "color": "rgb"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    cache = PetastormCaches(root=str(root)).find(NAME)
    assert cache
    return cache


def test_two_epochs_are_timed_and_what_came_is_kept(
    images: list[Batch], landing: Path, answered: Path, tmp_path: Path
) -> None:
    feed(lambda: iter(images), str(tmp_path / "output"))
    report = json.loads(answered.read_text())
    assert [epoch["images"] for epoch in report["epochs"]] == [COUNT, COUNT]
    assert report["work_seconds"] == report["epochs"][0]["seconds"]
    require_fed(tmp_path / "output", landing)


def test_a_lost_photograph_or_other_pixels_do_not_count(
    images: list[Batch], landing: Path, answered: Path, tmp_path: Path
) -> None:
    feed(lambda: iter(images[:1]), str(tmp_path / "lost"))
    with pytest.raises(WrongOutput, match="16 rows of 16 images"):
        require_fed(tmp_path / "lost", landing)
    pixels, numbers = images[0]
    assert isinstance(pixels, np.ndarray)
    mixed_up = [(pixels[::-1], numbers), *images[1:]]
    feed(lambda: iter(mixed_up), str(tmp_path / "mixed up"))
    with pytest.raises(WrongOutput, match="pixels differ from Pillow's"):
        require_fed(tmp_path / "mixed up", landing)


@pytest.mark.parametrize("content", ["original", "jpeg", "pixels"])
def test_our_second_epoch_is_fed_without_its_cache(
    content: Content, landing: Path, answered: Path, tmp_path: Path
) -> None:
    cache = cache_of(landing, tmp_path / "caches", content)
    own = ProjectEpochs(cache, Alone())
    first = {
        number: image for pixels, numbers in own.epoch() for number, image in zip(numbers.tolist(), pixels, strict=True)
    }
    Path(cache.files[0].removeprefix("file://")).unlink()
    for pixels, numbers in own.epoch():
        assert all(np.array_equal(first[number], image) for number, image in zip(numbers.tolist(), pixels, strict=True))
    feed(own.epoch, str(tmp_path / "output"))
    require_fed(tmp_path / "output", landing)


def test_petastorm_alone_hands_over_bytes(landing: Path, answered: Path, tmp_path: Path) -> None:
    cache = cache_of(landing, tmp_path / "caches", "original")

    def epoch() -> Iterator[Batch]:
        return undecoded_epoch(cache)

    feed(epoch, str(tmp_path / "output"))
    require_fed(tmp_path / "output", landing, decoded=False)
