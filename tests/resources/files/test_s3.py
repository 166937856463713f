"""Tests of storage on S3: supported locations, Spark settings, and no secrets in settings."""

from pathlib import Path

import pytest

from resources.settings import Settings, create_resources, read_settings

SECRET = "wJalrXUtnFEMI"
AWS = {
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL": "https://storage.example",
}


def settings_of(home: Path, **variables: str) -> Settings:
    return read_settings({"IMAGE_ASSETS_HOME": str(home), **AWS, **variables})


def test_tables_and_artifacts_move_to_s3_and_caches_do_not(tmp_path: Path) -> None:
    resources = create_resources(settings_of(tmp_path, IMAGE_ASSETS_STORAGE="s3://bucket/data/"))
    assert resources["delta_tables"].root == "s3://bucket/data/tables"
    assert resources["mlflow_tracking"].artifact_url == "s3://bucket/data/mlartifacts"
    assert resources["petastorm_caches"].root == str(tmp_path / "caches")


@pytest.mark.parametrize("variable", ["IMAGE_ASSETS_STORAGE", "IMAGE_ASSETS_LANDING"])
def test_spark_gets_the_endpoint_and_no_secret(tmp_path: Path, variable: str) -> None:
    resources = create_resources(settings_of(tmp_path, **{variable: "s3://bucket/folder"}))
    config = resources["pyspark"].spark_config
    assert config["spark.hadoop.fs.s3a.endpoint"] == "https://storage.example"
    assert config["spark.hadoop.fs.s3a.endpoint.region"] == "eu-central-1"
    assert SECRET not in repr(resources)


def test_spark_has_no_s3_settings_if_nothing_is_on_s3(tmp_path: Path) -> None:
    config = create_resources(settings_of(tmp_path))["pyspark"].spark_config
    assert not [name for name in config if "s3" in name]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"IMAGE_ASSETS_STORAGE": "gs://bucket/data"},
            r"IMAGE_ASSETS_STORAGE is 'gs://bucket/data': expected a folder",
        ),
        ({"IMAGE_ASSETS_STORAGE": "s3a://bucket/data"}, r"expected a folder, or s3://<bucket>/<prefix>"),
        (
            {"IMAGE_ASSETS_STORAGE": "s3://bucket/data", "AWS_ENDPOINT_URL": "http://storage.example"},
            r"which is not encrypted: use an https URL, or set AWS_ALLOW_HTTP=true",
        ),
    ],
)
def test_an_unsupported_location_is_rejected(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        settings_of(tmp_path, **variables)


def test_another_database_is_rejected_without_showing_its_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"begins with 'mysql': expected postgresql\+psycopg2://") as refused:
        settings_of(tmp_path, IMAGE_ASSETS_DAGSTER_DATABASE=f"mysql://me:{SECRET}@database/dagster")
    assert SECRET not in str(refused.value)
