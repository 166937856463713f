"""Tests of settings that are addresses and folders: what is accepted, and what is rejected without repeating it."""

import re
from pathlib import Path

import pytest

from resources.settings import Settings, read_settings


def settings_of(home: Path, **variables: str) -> Settings:
    return read_settings({"IMAGE_ASSETS_HOME": str(home), **variables})


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("MLFLOW_TRACKING_URI", "https://ann:tOps3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("MLFLOW_TRACKING_URI", "http://tOps3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("MLFLOW_TRACKING_URI", "http://ann:tO/ps3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg2://ann:tOps3cret@db:5432/mlflow", "pgpass"),
        ("MLFLOW_TRACKING_URI", "postgresql://db/mlflow?user=ann&Password=tOps3cret", "pgpass"),
        ("IMAGE_ASSETS_MLFLOW_URL", "https://ann:tOps3cret@mlflow.example", "remove it"),
        ("IMAGE_ASSETS_DAGSTER_URL", "https://ann:tOps3cret@dagster.example", "remove it"),
        ("IMAGE_ASSETS_LABELS", "https://ann:tOps3cret@labels.example/labels.csv", "remove it"),
        ("IMAGE_ASSETS_LABELS", "s3://ann:tOps3cret@labels/labels.csv", "AWS_… variables"),
        ("IMAGE_ASSETS_EVENTS", "https://ann:tOps3cret@sqs.example/1/photos", "remove it"),
        ("IMAGE_ASSETS_GALLERY_URL", "https://ann:tOps3cret@gallery.example", "remove it"),
        ("IMAGE_ASSETS_GALLERY_URL", "https://gallery.example/?token=tOps3cret", "remove it"),
        ("IMAGE_ASSETS_HOME", "sftp://ann:tOps3cret@host/home", "remove it"),
        ("IMAGE_ASSETS_LANDING", "sftp://ann:tOps3cret@host/photos", "~/.config/fsspec"),
        ("IMAGE_ASSETS_LANDING", "simplecache::sftp://ann:tOps3cret@host/photos", "~/.config/fsspec"),
        ("IMAGE_ASSETS_LANDING", "https://ann:tOps3cret@photos.example", "remove it"),
        ("IMAGE_ASSETS_STORAGE", "s3a://ann:tOps3cret@bucket", "AWS_… variables"),
        ("AWS_ENDPOINT_URL", "http://ann:tOps3cret@s3.example", "AWS_… variables"),
        ("AWS_ENDPOINT_URL_SQS", "http://ann:tOps3cret@sqs.example", "AWS_… variables"),
    ],
)
def test_an_address_with_a_password_is_rejected_without_repeating_it(
    tmp_path: Path, name: str, value: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} contains a password") as raised:
        read_settings({"IMAGE_ASSETS_HOME": str(tmp_path), name: value})
    assert remedy in str(raised.value)
    assert "ps3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:99999999", "not a valid address: expected one such as http://127"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:port", "not a valid address"),
        ("MLFLOW_TRACKING_URI", "http://[x", "not a valid address"),
        ("IMAGE_ASSETS_HOME", "s3://bucket/home", "expected a folder on this machine"),
        ("IMAGE_ASSETS_CACHES", "s3://bucket/caches", "expected a folder, which all machines share"),
        ("IMAGE_ASSETS_HOME", __file__, "which is a file: expected a folder"),
        ("IMAGE_ASSETS_HOME", "/ci/feature%2Fone/home", "expected a folder without a question mark"),
        ("IMAGE_ASSETS_HOME", "/what?/home", "addresses of SQLite databases cannot contain them"),
        ("IMAGE_ASSETS_HOME", "file:///home", "begins with 'file:': expected a folder such as /photos"),
        (
            "IMAGE_ASSETS_STORAGE",
            "s3:/bucket",
            "begins with 's3:/': expected a folder such as /photos, or a URL such as",
        ),
        ("IMAGE_ASSETS_CACHES", "file:///caches", "begins with 'file:'"),
        ("IMAGE_ASSETS_CACHES", "/C# photos/caches", "expected a folder without # in its path"),
        ("IMAGE_ASSETS_LANDING", "https:/ann:tOps3cret@example.com", "begins with 'https:/': expected"),
        ("IMAGE_ASSETS_LABELS", "s3:/bucket/labels.csv", "begins with 's3:/'"),
        (
            "IMAGE_ASSETS_SPARK_MASTER",
            "localhost:7077",
            "is 'localhost:7077': expected local[*] for this machine, or a",
        ),
        ("IMAGE_ASSETS_LANDING", "https://example.com/photos", "files cannot be listed: expected a folder, or a URL"),
    ],
)
def test_a_place_that_can_never_work_is_named_with_what_is_expected(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*{re.escape(message)}") as raised:
        settings_of(tmp_path, **{name: value})
    assert "ps3cret" not in str(raised.value)


def test_addresses_for_links_have_no_slash_at_the_end(tmp_path: Path) -> None:
    names = ["IMAGE_ASSETS_DAGSTER_URL", "IMAGE_ASSETS_GALLERY_URL", "IMAGE_ASSETS_MLFLOW_URL"]
    settings = settings_of(tmp_path, **dict.fromkeys(names, "https://ui.example/path/"))
    assert {settings.dagster_url, settings.gallery_url, settings.mlflow_url} == {"https://ui.example/path"}


def test_a_landing_folder_may_name_an_account_without_its_password(tmp_path: Path) -> None:
    assert settings_of(tmp_path, IMAGE_ASSETS_LANDING="sftp://ann@host/photos").landing == "sftp://ann@host/photos"


@pytest.mark.parametrize(
    "value", ["postgresql://ann@db/mlflow", "sqlite:////home/ann@work/mlflow.db", " http://mlflow:5000 "]
)
def test_an_address_without_a_password_is_accepted(tmp_path: Path, value: str) -> None:
    assert settings_of(tmp_path, MLFLOW_TRACKING_URI=value).tracking_uri == value.strip()


def test_a_landing_folder_may_be_a_url(tmp_path: Path) -> None:
    assert settings_of(tmp_path, IMAGE_ASSETS_LANDING="s3://photos/mine/").landing == "s3://photos/mine"


def test_a_label_table_is_a_path_or_lies_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of(tmp_path, IMAGE_ASSETS_LABELS="labels.csv").labels == str(tmp_path / "labels.csv")
    assert settings_of(tmp_path, IMAGE_ASSETS_LABELS="s3://b/labels/").labels == "s3://b/labels"
    with pytest.raises(
        ValueError, match="IMAGE_ASSETS_LABELS is 'https://labels.example/a.csv': expected a folder, or"
    ):
        settings_of(tmp_path, IMAGE_ASSETS_LABELS="https://labels.example/a.csv")


def test_events_are_those_of_a_landing_folder_on_s3(tmp_path: Path) -> None:
    queue, landing = "https://sqs.eu-central-1.amazonaws.com/1/photos", "s3://photos/landing"
    assert settings_of(tmp_path, IMAGE_ASSETS_EVENTS=queue, IMAGE_ASSETS_LANDING=landing).events == queue
    for wrong in ({"IMAGE_ASSETS_EVENTS": queue}, {"IMAGE_ASSETS_EVENTS": "photos", "IMAGE_ASSETS_LANDING": landing}):
        with pytest.raises(ValueError, match="expected the https URL of an SQS queue, and a landing folder on s3://"):
            settings_of(tmp_path, **wrong)
