"""Fixtures that many tests share: Spark with Delta, an empty home, a landing folder."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from pyspark.sql import SparkSession

from image_assets.data.featured_images import featured_images
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_samples import image_samples
from image_assets.data.image_splits import image_splits
from image_assets.data.raw_images import raw_images
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from resources.mlflow.mlflow_tracking import create_store
from resources.mlflow.model_registry import ModelRegistry
from resources.samples import SampleSize
from tests.support.images import png, put
from tests.support.java_classes import class_archive
from tests.support.mlflow_server import MlflowServer, mlflow_server
from tests.support.receivers import Inbox, webhook
from tests.support.small_spark import small_spark

# Every JVM of a test lives for seconds or minutes, so it gets one compiler and one collector. Hadoop starts `chmod` for
# each file that it writes, and without VFORK Java starts a helper each time as well.
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djdk.lang.Process.launchMechanism=VFORK"

# A shell ignores SIGINT in what it starts in the background. Dagster would let SIGTERM do as SIGINT does, so that the
# servers that tests start afterwards could not be stopped.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Set the options of every JVM: of drivers and their executors, and of the masters and workers of clusters."""
    options = f"{JVM} -XX:SharedArchiveFile={class_archive(JVM)} -Xlog:disable"
    drivers = f'{options} -Dspark.executor.extraJavaOptions="{options}"'
    for variable, value in {"SPARK_SUBMIT_OPTS": drivers, "SPARK_DAEMON_JAVA_OPTS": options}.items():
        os.environ[variable] = f"{os.environ.get(variable, '')} {value}".strip()
    gc.disable()  # half of the time to import the tests would go into looking for garbage


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage again, but never look through the million objects that were imported."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no worker is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.get_closest_marker("path") is None, item.path not in slow))


@pytest.fixture(scope="session")
def delta_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeltaSpark]:
    """The project's own Spark session, on two cores, started by the first test that uses it."""
    yield small_spark(str(tmp_path_factory.mktemp("spark")))
    if active := SparkSession.getActiveSession():
        active.stop()


@pytest.fixture(scope="session")
def spark(delta_spark: DeltaSpark) -> SparkSession:
    return delta_spark.spark_session


def tables_in(home: Path, session: DeltaSpark) -> DeltaTables:
    return DeltaTables(pyspark=session, root=str(home / "tables"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home. Its name has a space, as many folder names do."""
    return tmp_path / "a home"


@pytest.fixture
def delta_tables(delta_spark: DeltaSpark, home: Path) -> DeltaTables:
    """An empty folder of tables."""
    return tables_in(home, delta_spark)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """The messages that a local webhook receives. It accepts all of them."""
    with webhook() as inbox:
        yield inbox


@pytest.fixture
def landing(home: Path) -> Path:
    """An empty landing folder."""
    folder = home / "landing"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def image_folder(landing: Path) -> ImageFolder:
    """The landing folder without a settle period."""
    return ImageFolder(root=str(landing), settle_seconds=0)


@pytest.fixture
def eight_images(landing: Path) -> dict[str, bytes]:
    """Four balls and four cubes in the landing folder, as contents by file name."""
    labels = ["ball"] * 4 + ["cube"] * 4
    contents = {f"{label}/{label} {number}.png": png(number) for number, label in enumerate(labels)}
    for name, content in contents.items():
        put(landing, name, content)
    return contents


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. Creating one takes seconds, so tests copy it."""
    store = tmp_path_factory.getbasetemp() / "empty_store" / "mlflow.db"
    create_store(f"sqlite:///{store}")
    return store


@pytest.fixture
def registry(home: Path, empty_store: Path) -> ModelRegistry:
    """A registry with the registered model, without versions."""
    from mlflow import MlflowClient

    home.mkdir(exist_ok=True)
    shutil.copy(empty_store, home / "mlflow.db")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    MlflowClient(registry.tracking_uri, registry.tracking_uri).create_registered_model(registry.name)
    return registry


@pytest.fixture(scope="session")
def accounts_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    """An MLflow server with accounts. It takes seconds to start, so the tests share it."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow_server"), empty_store) as server:
        yield server


@dataclass(frozen=True)
class Ingested:
    """A home after a run of the data assets. Do not change it."""

    home: Path
    run: dg.ExecuteInProcessResult


@pytest.fixture(scope="session")
def ingested(delta_spark: DeltaSpark, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Eight balls and eight cubes, ingested by one Dagster run."""
    home = tmp_path_factory.mktemp("ingested") / "a home"
    for number in range(16):
        label = ("ball", "cube")[number % 2]
        put(home / "landing", f"{label}/{label} {number}.png", png(number))
    run = dg.materialize(
        [raw_images, featured_images, grayscale_images, image_samples, image_splits],
        resources={
            "delta_tables": tables_in(home, delta_spark),
            "image_folder": ImageFolder(root=str(home / "landing"), settle_seconds=0),
            "duplicate_rules": DuplicateRules(),
            "sample_size": SampleSize(),
        },
        instance=dg.DagsterInstance.ephemeral(),
    )
    return Ingested(home, run)


@pytest.fixture
def ingested_tables(ingested: Ingested, delta_spark: DeltaSpark, home: Path) -> DeltaTables:
    """A copy of the tables of eight balls and eight cubes, which a test may change."""
    shutil.copytree(ingested.home / "tables", home / "tables")
    return tables_in(home, delta_spark)
