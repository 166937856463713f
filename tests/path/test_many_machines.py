"""The graph on a cluster whose workers know nothing of the driver's environment, with its tables on S3."""

from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest
from deltalake import DeltaTable

from scripts.cluster import standalone_cluster
from tests.support.graph_run import graph_run
from tests.support.images import colored_jpeg
from tests.support.s3_server import BUCKET, SECRET, s3_server

INGESTED = "image_files,raw_images,replayed_files,featured_images"
FOLLOWING = f"{INGESTED},grayscale_images,image_splits,image_samples"
TRAINED = "training_cache,validation_cache,torch_model,model_evaluations"
PREDICTED = "image_predictions,current_predictions"
IMAGES = 24
PLACES = {"IMAGE_ASSETS_STORAGE": f"s3://{BUCKET}/home", "IMAGE_ASSETS_LANDING": f"s3://{BUCKET}/photographs"}

pytestmark = [
    pytest.mark.path,
    pytest.mark.skipif(
        not any((Path(pyspark.__file__).parent / "jars").glob("*hadoop-aws-*.jar")),
        reason="Spark has no jars for S3: `make s3` fetches them",
    ),
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket with images of two labels, which this process's environment names."""
    import fsspec

    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        for number in range(IMAGES):
            label = ("ball", "cube")[number % 2]
            bucket.pipe_file(f"{BUCKET}/photographs/{label}/{label} {number}.jpg", colored_jpeg(number % 2, number))
        yield


def everything_written(home: Path) -> str:
    """All that lies in the home, as text."""
    return "".join(file.read_bytes().decode(errors="replace") for file in home.rglob("*") if file.is_file())


@pytest.mark.usefixtures("s3")
def test_the_graph_runs_on_a_cluster_with_its_tables_on_s3(tmp_path: Path) -> None:
    with standalone_cluster(workers=2) as master:
        settings = {**PLACES, "IMAGE_ASSETS_SPARK_MASTER": master, "IMAGE_ASSETS_BACKBONE": "none"}
        runs = [FOLLOWING, INGESTED, f"{TRAINED},{PREDICTED}"]
        (first, second, trained), output = graph_run(tmp_path / "home", *runs, **settings)
    assert {first[name]["rows_added"] for name in ("raw_images", "featured_images", "grayscale_images")} == {IMAGES}
    assert {made.get("rows_added", 0) for made in second.values()} == {0}
    assert (trained["torch_model"]["processes"], trained["torch_model"]["validation_accuracy"]) == (2, 1)
    assert trained["current_predictions"]["dagster/row_count"] == IMAGES
    assert not (tmp_path / "home" / "tables").exists()
    tables = f"{PLACES['IMAGE_ASSETS_STORAGE']}/tables"
    assert {DeltaTable(f"{tables}/{name}").count() for name in ("raw_images", "featured_images")} == {IMAGES}
    assert SECRET not in output + everything_written(tmp_path / "home")
