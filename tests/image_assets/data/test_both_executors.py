"""The same images through threads and through Spark: the same rows, files of the same layout, the same quarantine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from image_assets.data.raw_images import IngestConfig
from image_assets.models.image_embeddings import follow_featured_images
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_EMBEDDINGS, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import column_chunks
from resources.delta.spark_session import DeltaSpark, ExecutorName
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder
from tests.conftest import tables_in
from tests.support.data_run import run_data
from tests.support.embedded import color_network
from tests.support.images import jpeg, png, put

pytestmark = pytest.mark.spark
TABLES = (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_EMBEDDINGS)
TIMES = {"first_seen", "last_seen"}  # of the run


def fill(landing: Path) -> None:
    """Images of both labels, one above the content limit, and files that are none or broken."""
    for number in range(9):
        put(landing, f"{('ball', 'cube')[number % 2]}/{number}.png", png(number))
    put(landing, "ball/a photo %20.jpg", jpeg(1))
    put(landing, "ball/large.png", png(20, size=(400, 400)))
    put(landing, "cube/broken.jpg", jpeg(2)[:-200])
    put(landing, "cube/text.jpg", b"a text")
    put(landing, "cube/empty.png", b"")


def change(landing: Path) -> None:
    """One more image, one with other bytes, one gone."""
    put(landing, "cube/new.jpg", jpeg(7))
    put(landing, "ball/0.png", png(30, size=(60, 50)))
    (landing / "cube" / "1.png").unlink()


@pytest.fixture(scope="module")
def homes(delta_spark: DeltaSpark, tmp_path_factory: pytest.TempPathFactory) -> dict[ExecutorName, DeltaTables]:
    """Two homes that followed the same landing folder, by each executor."""
    folder = tmp_path_factory.mktemp("both executors")
    landing = folder / "landing"
    limit = len(png(20, size=(400, 400))) - 1
    image_folder = ImageFolder(root=str(landing), settle_seconds=0, content_limit_bytes=limit)
    names: tuple[ExecutorName, ...] = ("local", "spark")
    homes = {
        name: tables_in(folder / name, DeltaSpark(spark_config=delta_spark.spark_config, executor=name))
        for name in names
    }
    network = color_network(folder)
    changes: tuple[Callable[[Path], None], ...] = (fill, change)
    for changed in changes:
        changed(landing)
        for tables in homes.values():
            run_data(tables, image_folder)
            follow_featured_images(tables, network)
    for tables in homes.values():
        run_data(tables, image_folder, IngestConfig(paths=[]))
    return homes


def rows(tables: DeltaTables, table: Table) -> list[dict[str, Any]]:
    names = [name for name in table.columns.fieldNames() if name not in TIMES]
    found = tables.read(table, names).to_pylist()
    return sorted(found, key=lambda row: (row["path"], row["image_id"] or ""))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_all_rows_are_equal_column_by_column(homes: dict[ExecutorName, DeltaTables], table: Table) -> None:
    assert len(rows(homes["local"], table)) >= 10
    assert rows(homes["local"], table) == rows(homes["spark"], table)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_files_have_the_same_columns_codecs_dictionaries_and_statistics(
    homes: dict[ExecutorName, DeltaTables], table: Table
) -> None:
    def layout(tables: DeltaTables) -> tuple[Any, ...]:
        log = DeltaTable(tables.uri(table))
        statistics = set(log.get_add_actions(flatten=True).schema.names)
        return column_chunks(log.file_uris()), statistics, log.schema().to_json()

    assert layout(homes["local"]) == layout(homes["spark"])
