"""A cache is found again by its name while it is whole, has as much for every rank, and makes room for newer ones."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from resources.delta.arrow_rows import Row
from resources.delta.executors import Executor
from resources.delta.parquet_files import codecs, row_groups
from resources.delta.petastorm_caches import Cache, LocalRows, PetastormCaches
from resources.delta.row_groups import CACHE_ROW_GROUP_BYTES, ROW_GROUPS_PER_RANK, shard_rows
from resources.progress import ProgressLine
from tests.support.images import put


@pytest.fixture
def caches(home: Path) -> PetastormCaches:
    return PetastormCaches(root=str(home / "caches"))


def images(spark: SparkSession, count: int, *, kilobytes: int = 1) -> DataFrame:
    """Rows of a cache, spread over three partitions, sorted by label."""
    content = f"cast(concat(string(id), repeat('x', {kilobytes * 1024})) AS binary) content"
    return spark.range(0, count, 1, 3).selectExpr("sha2(string(id), 256) image_id", content, "id label_index")


def local_images(count: int, *, kilobytes: int = 1, threads: int = 2) -> LocalRows:
    """The same rows, read by threads of this process."""

    def read(part: int, of: int) -> Iterator[Row]:
        for number in range(part, count, of):
            content = str(number).encode() + b"x" * kilobytes * 1024
            yield {"image_id": sha256(str(number).encode()).hexdigest(), "content": content, "label_index": number}

    progress = ProgressLine("cached", count, "images", print)
    schema = pa.schema([("image_id", pa.string()), ("content", pa.binary()), ("label_index", pa.int64())])
    return LocalRows(read, count, schema, Executor(None, threads), progress)


def files_of(cache: Cache) -> list[Path]:
    return [Path(file.removeprefix("file://")) for file in cache.files]


def folders_in(caches: PetastormCaches) -> list[str]:
    return sorted(folder.name for folder in Path(caches.root).iterdir())


@pytest.mark.spark
@pytest.mark.parametrize(("count", "ranks"), [(1, 1), (4, 4), (7, 2), (100, 3)])
def test_every_rank_gets_as_many_rows_however_few_the_images(
    caches: PetastormCaches, spark: SparkSession, count: int, ranks: int
) -> None:
    cache = caches.write(images(spark, count), "training-v1-a", ranks=ranks)
    groups = row_groups(cache.files)
    assert len(groups) == min(count, ROW_GROUPS_PER_RANK * ranks)
    shards = shard_rows(groups, ranks)
    assert max(shards) - min(shards) <= 1
    found = [row for file in files_of(cache) for row in pq.read_table(file).to_pylist()]
    assert [row["image_id"] for row in found] == sorted(row["image_id"] for row in found), "a hash: labels are mixed"
    assert sorted(row["label_index"] for row in found) == list(range(count))
    assert all(row["content"].startswith(str(row["label_index"]).encode()) for row in found)


@pytest.mark.spark
def test_row_groups_are_near_a_megabyte_and_hold_every_label(caches: PetastormCaches, spark: SparkSession) -> None:
    rows = images(spark, 400, kilobytes=100).selectExpr("image_id", "content", "label_index div 200 label_index")
    cache = caches.write(rows, "training-v1-a", ranks=2)
    sizes = [size for _, size in row_groups(cache.files)]
    assert len(sizes) == 40
    assert len(cache.files) < len(sizes)
    assert all(CACHE_ROW_GROUP_BYTES / 2 < size < 2 * CACHE_ROW_GROUP_BYTES for size in sizes)
    assert codecs(cache.files, "content") == {"UNCOMPRESSED"}
    footers = [pq.ParquetFile(file) for file in files_of(cache)]
    labels = [
        set(file.read_row_group(group, columns=["label_index"])["label_index"].to_pylist())
        for file in footers
        for group in range(file.num_row_groups)
    ]
    assert labels.count({0, 1}) > 35, "of ten rows, hardly ever all have the same label"


@pytest.mark.spark
def test_a_cache_is_found_again_until_a_file_is_cut_or_gone(caches: PetastormCaches, spark: SparkSession) -> None:
    assert caches.find("training-v1-a") is None
    written = caches.write(images(spark, 4), "training-v1-a", ranks=2)
    assert caches.find("training-v1-a") == written
    assert caches.find("training-v2-a") is None
    file = files_of(written)[0]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert caches.find("training-v1-a") is None
    with pytest.raises(FileNotFoundError, match="training-v1-a is no longer complete: materialize it again"):
        written.in_use().__enter__()
    file.unlink()
    assert caches.find("training-v1-a") is None
    rewritten = caches.write(images(spark, 3), "training-v1-a", ranks=2)
    assert rewritten.rows == sum(rows for rows, _ in row_groups(rewritten.files)) == 3
    assert folders_in(caches) == ["training-v1-a"]


@pytest.mark.spark
def test_the_same_rows_give_the_same_files_however_they_are_spread(
    caches: PetastormCaches, spark: SparkSession
) -> None:
    first = caches.write(images(spark, 50), "training-v1-a", ranks=2)
    again = caches.write(images(spark, 50).repartition(5), "training-v1-b", ranks=2)
    assert [file.read_bytes() for file in files_of(first)] == [file.read_bytes() for file in files_of(again)]


@pytest.mark.spark
@pytest.mark.parametrize(("count", "kilobytes", "ranks"), [(1, 1, 1), (7, 1, 2), (40, 100, 3)])
def test_both_ways_write_the_same_row_groups(
    caches: PetastormCaches, spark: SparkSession, count: int, kilobytes: int, ranks: int
) -> None:
    by_spark = caches.write(images(spark, count, kilobytes=kilobytes), "training-v1-a", ranks=ranks)
    by_threads = caches.write(local_images(count, kilobytes=kilobytes), "training-v1-b", ranks=ranks)
    assert by_threads.rows == by_spark.rows
    assert groups_of(by_threads) == groups_of(by_spark)


def groups_of(cache: Cache) -> list[list[Row]]:
    files = [pq.ParquetFile(file) for file in files_of(cache)]
    return [file.read_row_group(group).to_pylist() for file in files for group in range(file.num_row_groups)]


def test_threads_fill_several_files_and_read_back_what_they_spilled(caches: PetastormCaches) -> None:
    cache = caches.write(local_images(1500, kilobytes=100, threads=3), "training-v1-a", ranks=2)
    assert len(cache.files) == 3
    assert list(cache.files) == sorted(cache.files)
    groups = row_groups(cache.files)
    assert sum(rows for rows, _ in groups) == 1500
    assert all(CACHE_ROW_GROUP_BYTES / 2 < size < 2 * CACHE_ROW_GROUP_BYTES for _, size in groups)
    shards = shard_rows(groups, 2)
    assert max(shards) - min(shards) <= 1
    rows = [row for group in groups_of(cache) for row in group]
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    assert all(row["content"].rstrip(b"x") == str(row["label_index"]).encode() for row in rows)


@pytest.mark.parametrize("left", [b"", b'{"rows": 4, "fi', b"\0" * 20])
def test_a_manifest_that_a_power_failure_cut_off_counts_as_missing(caches: PetastormCaches, left: bytes) -> None:
    caches.write(local_images(4), "training-v1-a", ranks=2)
    (Path(caches.root) / "training-v1-a" / "_cache.json").write_bytes(left)
    assert caches.find("training-v1-a") is None
    assert caches.write(local_images(4), "training-v1-a", ranks=2).rows == 4


def test_fewer_images_than_ranks_are_refused_with_the_remedy(caches: PetastormCaches) -> None:
    with pytest.raises(ValueError, match=r"2 images cannot feed 3 processes: add images .*IMAGE_ASSETS_PROCESSES"):
        caches.write(local_images(2), "training-v1-a", ranks=3)
    assert folders_in(caches) == []


@pytest.mark.spark
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_petastorm_deals_every_row_once_and_evenly(caches: PetastormCaches, spark: SparkSession) -> None:
    from petastorm import make_batch_reader

    cache = caches.write(images(spark, 1001), "training-v1-a", ranks=3)
    converter = cache.converter()
    assert len(converter) == 1001
    shards = []
    for rank in range(3):
        with make_batch_reader(
            converter.file_urls, num_epochs=1, workers_count=1, cur_shard=rank, shard_count=3
        ) as reader:
            shards.append([label_index for batch in reader for label_index in batch.label_index])
    assert [len(shard) for shard in shards] == shard_rows(row_groups(cache.files), 3) == [334, 334, 333]
    assert sorted(label_index for shard in shards for label_index in shard) == list(range(1001))


# In processes of their own, to be killed.
WRITE_BY_SPARK = """
import sys
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.spark_session import spark_session
session = spark_session("local[2]", scratch=sys.argv[2])
rows = session.spark_session.range(0, 1000, 1, 2).selectExpr(
    "sha2(string(id), 256) image_id", "cast(repeat('x', 100000) AS binary) content", "id label_index"
)
PetastormCaches(root=sys.argv[1]).write(rows, "training-v1-a", ranks=1)
"""
WRITE_BY_THREADS = """
import sys
import pyarrow as pa
from hashlib import sha256
from resources.delta.executors import Executor
from resources.delta.petastorm_caches import LocalRows, PetastormCaches
from resources.progress import ProgressLine
from tests.support.images import put

def read(part, of):
    for number in range(part, 1000, of):
        image_id = sha256(str(number).encode()).hexdigest()
        yield {"image_id": image_id, "content": b"x" * 100000, "label_index": number}

schema = pa.schema([("image_id", pa.string()), ("content", pa.binary()), ("label_index", pa.int64())])
rows = LocalRows(read, 1000, schema, Executor(None, 2), ProgressLine("cached", 1000, "images", print))
PetastormCaches(root=sys.argv[1]).write(rows, "training-v1-a", ranks=1)
"""
USE = """
import sys
from resources.delta.petastorm_caches import PetastormCaches
with PetastormCaches(root=sys.argv[1]).find(sys.argv[2]).in_use():
    print("in use", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("program", [pytest.param(WRITE_BY_SPARK, marks=pytest.mark.spark), WRITE_BY_THREADS])
def test_a_killed_write_leaves_nothing_that_is_found_and_the_next_one_cleans_up(
    caches: PetastormCaches, tmp_path: Path, program: str
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", program, caches.root, str(tmp_path / "spark")])
    while not list(Path(caches.root).glob(".*/part-*")):
        assert writer.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    writer.kill()
    writer.wait()
    (left,) = folders_in(caches)
    assert not (Path(caches.root) / left / "_cache.json").exists()
    assert caches.find("training-v1-a") is None
    assert caches.write(local_images(4), "training-v1-a", ranks=2).rows == 4
    assert folders_in(caches) == ["training-v1-a"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.spark
@pytest.mark.parametrize(("count", "kilobytes"), [(100, 40), (102, 20)])  # the second one fits, but for its footers
def test_a_full_disk_is_told_with_what_was_needed_and_leaves_nothing(
    small_disk: Path, spark: SparkSession, count: int, kilobytes: int
) -> None:
    caches = PetastormCaches(root=str(small_disk))
    with pytest.raises(
        OSError, match=r"needs more than [\d,]+ bytes, but only [\d,]+ are free. Free disk space.*disk'"
    ) as raised:
        caches.write(images(spark, count, kilobytes=kilobytes), "training-v1-a", ranks=2)
    assert raised.value.filename == str(small_disk)
    assert folders_in(caches) == []
    assert caches.write(images(spark, 100), "training-v1-a", ranks=2).rows == 100


@pytest.mark.parametrize(("count", "kilobytes"), [(100, 40), (60, 20)])  # the second one fits, but not twice
def test_threads_tell_of_a_full_disk_too(small_disk: Path, count: int, kilobytes: int) -> None:
    caches = PetastormCaches(root=str(small_disk))
    with pytest.raises(
        OSError, match=r"needs more than [\d,]+ bytes, but only [\d,]+ are free. Free disk space"
    ) as raised:
        caches.write(local_images(count, kilobytes=kilobytes), "training-v1-a", ranks=2)
    assert raised.value.filename == str(small_disk)
    assert folders_in(caches) == []
    assert caches.write(local_images(100), "training-v1-a", ranks=2).rows == 100


@pytest.fixture
def aged(caches: PetastormCaches, spark: SparkSession) -> int:
    """Four caches for training and one for validation, from the oldest to the newest; how many bytes each has."""
    first = files_of(caches.write(images(spark, 8), "validation-v1-a", ranks=2))[0].parent
    for age, name in enumerate(["training-v4-a", "training-v3-a", "training-v2-a", "training-v1-a", "validation-v1-a"]):
        folder = first.with_name(name)
        if folder != first:
            shutil.copytree(first, folder)
        used = time.time() - 60 * (1 + age)
        os.utime(folder, (used, used))
    return sum(file.stat().st_size for file in first.iterdir())


def within(caches: PetastormCaches, *, keep: int = 9, keep_bytes: float = 1e9) -> PetastormCaches:
    return PetastormCaches(root=caches.root, keep=keep, keep_megabytes=keep_bytes / 1024**2)


@pytest.mark.spark
def test_caches_beyond_the_number_are_evicted_by_their_last_use(caches: PetastormCaches, aged: int) -> None:
    assert caches.find("training-v1-a"), "finding it counts as a use"
    assert within(caches, keep=2).evict() == ["training-v2-a", "training-v3-a"]
    assert within(caches, keep=2).evict() == []
    assert folders_in(caches) == ["training-v1-a", "training-v4-a", "validation-v1-a"]


def test_old_checkpoints_are_deleted_and_those_of_trainings_that_may_be_resumed_stay(tmp_path: Path) -> None:
    caches = PetastormCaches(root=str(tmp_path))
    for name in ("forgotten", "killed"):
        put(Path(caches.checkpoints(name)), "head.safetensors", b"")
    os.utime(caches.checkpoints("forgotten"), times=(0, 0))
    assert caches.evict() == []
    assert [folder.name for folder in Path(caches.checkpoints("")).iterdir()] == ["killed"]


def test_embeddings_of_earlier_releases_are_deleted_and_unknown_folders_stay(tmp_path: Path) -> None:
    former = "torch-0123456789abcdef"
    others = [".backbones", *(f"photos-{year}" for year in range(2020, 2026)), "run-0123456789abcdef", "torch-notes"]
    for name in (former, *others):
        put(tmp_path, f"{name}/file", b"")
    assert PetastormCaches(root=str(tmp_path), keep=1).evict() == [former]
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir()) == others


@pytest.mark.spark
def test_caches_beyond_the_bytes_are_evicted_but_for_the_last_one_of_each_split(
    caches: PetastormCaches, aged: int
) -> None:
    assert within(caches, keep_bytes=5 * aged).evict() == []
    assert within(caches, keep_bytes=3.5 * aged).evict() == ["training-v1-a", "training-v2-a"]
    assert within(caches, keep_bytes=1).evict() == ["training-v3-a"]
    assert folders_in(caches) == ["training-v4-a", "validation-v1-a"]


@pytest.mark.spark
def test_a_cache_in_use_is_not_evicted_until_its_process_is_gone(caches: PetastormCaches, aged: int) -> None:
    cache = caches.find("training-v1-a")
    assert cache
    command = [sys.executable, "-c", USE, caches.root, "training-v2-a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"in use\n"
        with cache.in_use(), cache.in_use():
            caches.find("training-v4-a")
            assert within(caches, keep=1).evict() == ["training-v3-a"]
        assert within(caches, keep=1).evict() == ["training-v1-a"]
        other.kill()
    assert within(caches, keep=1).evict() == ["training-v2-a"]
    with pytest.raises(FileNotFoundError, match="is no longer complete"):
        cache.in_use().__enter__()
