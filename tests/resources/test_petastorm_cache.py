"""A cache is found again by its name while it is whole, and has something for every rank."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from resources.parquet_footers import codecs, row_groups
from resources.petastorm_cache import ROW_GROUP_BYTES, ROW_GROUPS_PER_RANK, Cache, PetastormCaches

pytestmark = pytest.mark.spark


@pytest.fixture
def caches(home: Path) -> PetastormCaches:
    return PetastormCaches(root=str(home / "caches"))


def images(spark: SparkSession, count: int, *, kilobytes: int = 1) -> DataFrame:
    """Rows of a cache, spread over three partitions."""
    content = f"cast(concat(string(id), repeat('x', {kilobytes * 1024})) AS binary) content"
    return spark.range(0, count, 1, 3).selectExpr(content, "id label_index")


def files_of(cache: Cache) -> list[Path]:
    return [Path(file.removeprefix("file://")) for file in cache.files]


@pytest.mark.parametrize(("count", "ranks"), [(1, 1), (2, 2), (4, 4), (7, 2), (9, 3)])
def test_every_rank_gets_a_row_group_however_few_the_images(
    caches: PetastormCaches, spark: SparkSession, count: int, ranks: int
) -> None:
    cache = caches.write(images(spark, count), "training-v1-a", ranks=ranks)
    groups = row_groups(cache.files)
    assert len(groups) >= min(count, ROW_GROUPS_PER_RANK * ranks)
    assert all(rows for rows, _ in groups)
    found = [row for file in files_of(cache) for row in pq.read_table(file).to_pylist()]
    assert sorted(row["label_index"] for row in found) == list(range(count))
    assert all(row["content"].startswith(str(row["label_index"]).encode()) for row in found)


def test_row_groups_are_small_also_where_files_are_large(caches: PetastormCaches, spark: SparkSession) -> None:
    cache = caches.write(images(spark, 100, kilobytes=200), "training-v1-a", ranks=1)
    groups = row_groups(cache.files)
    assert len(groups) > len(cache.files)
    assert max(size for _, size in groups) <= 2 * ROW_GROUP_BYTES
    assert codecs(cache.files, "content") == {"UNCOMPRESSED"}


def test_a_cache_is_found_again_until_a_file_is_cut_or_gone(caches: PetastormCaches, spark: SparkSession) -> None:
    assert caches.find("training-v1-a") is None
    written = caches.write(images(spark, 4), "training-v1-a", ranks=2)
    assert caches.find("training-v1-a") == written
    assert caches.find("training-v2-a") is None
    file = files_of(written)[0]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert caches.find("training-v1-a") is None
    file.unlink()
    assert caches.find("training-v1-a") is None
    file.write_bytes(content)
    assert caches.find("training-v1-a") == written
    rewritten = caches.write(images(spark, 3), "training-v1-a", ranks=2)
    assert rewritten.rows == sum(rows for rows, _ in row_groups(rewritten.files)) == 3


def test_a_cache_that_was_not_written_to_its_end_is_not_found(caches: PetastormCaches, spark: SparkSession) -> None:
    written = caches.write(images(spark, 2), "training-v1-a", ranks=1)
    (manifest,) = files_of(written)[0].parent.glob("_cache.json")
    manifest.unlink()
    assert caches.find("training-v1-a") is None


def test_fewer_images_than_ranks_are_refused_with_the_remedy(caches: PetastormCaches, spark: SparkSession) -> None:
    with pytest.raises(ValueError, match=r"2 images cannot feed 3 processes: add images .*IMAGE_ASSETS_PROCESSES"):
        caches.write(images(spark, 2), "training-v1-a", ranks=3)
    assert caches.find("training-v1-a") is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_petastorm_reads_every_row_once_over_all_shards(caches: PetastormCaches, spark: SparkSession) -> None:
    from petastorm import make_batch_reader

    cache = caches.write(images(spark, 5), "training-v1-a", ranks=2)
    converter = cache.converter()
    assert len(converter) == 5
    read = []
    for rank in range(2):
        with make_batch_reader(
            converter.file_urls, num_epochs=1, workers_count=1, cur_shard=rank, shard_count=2
        ) as reader:
            shard = [label_index for batch in reader for label_index in batch.label_index]
        assert shard, "a rank without rows would wait for the others for ever"
        read += shard
    assert sorted(read) == list(range(5))


def test_old_caches_of_a_split_are_deleted_and_others_left(caches: PetastormCaches, home: Path) -> None:
    for name in ("training-v1-a", "training-v2-a", "training-v3-a", "training-v4-a", "validation-v1-a"):
        (home / "caches" / name).mkdir(parents=True)
    for age, name in enumerate(["training-v1-a", "training-v4-a", "training-v3-a", "training-v2-a"]):
        folder = home / "caches" / name
        stamp = folder.stat().st_mtime - 60 * age
        os.utime(folder, (stamp, stamp))
    assert caches.delete_others("training-v2-a", prefix="training-", keep=2) == ["training-v3-a"]
    left = sorted(folder.name for folder in (home / "caches").iterdir())
    assert left == ["training-v1-a", "training-v2-a", "training-v4-a", "validation-v1-a"]
