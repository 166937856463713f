"""Tests of settings and the resources made from them: defaults, every variable, and rejected values."""

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from resources.alerts import RulesFile
from resources.files.image_folder import LITTER
from resources.home import write_landing
from resources.settings import (
    Settings,
    alert_sender,
    create_resources,
    image_folder,
    petastorm_caches,
    read_settings,
    rules_file,
)


def settings_of(home: Path, **variables: str) -> Settings:
    return read_settings({"IMAGE_ASSETS_HOME": str(home), **variables})


def test_by_default_everything_is_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings({})
    assert settings == Settings(
        home=tmp_path / ".image_assets",
        storage=tmp_path / ".image_assets",
        caches=tmp_path / ".image_assets" / "caches",
        landing=tmp_path / ".image_assets" / "landing",
        tracking_uri=f"sqlite:///{tmp_path / '.image_assets' / 'mlflow.db'}",
        spark_master="local[*]",
        executor="auto",
        processes=2,
        backbone="auto",
        device="auto",
        gpu_run_tags={},
        spark_gpus=0,
        tasks_per_gpu=4,
        dagster_url="http://127.0.0.1:3000",
        mlflow_url="http://127.0.0.1:5000",
        owners=(),
        freshness=None,
        gallery_url="http://127.0.0.1:4000",
        include=(),
        exclude=(),
        litter=LITTER,
        link_roots=(),
        label_level=1,
        merge_labels=False,
        split_folders="auto",
        labels="",
        path_column="",
        label_column="",
        duplicates="near",
        group_by="",
        samples_per_label=8,
        samples_per_folder=None,
        settle_seconds=2,
        listing_seconds=4,
        worker_megabytes=4096,
        events="",
        content_limit_megabytes=512,
        size_limit_megabytes=16384,
        pixel_limit_millions=50,
        page="non_blank",
        cache_content="original",
        cache_color="rgb",
        cache_megabytes=16384,
        fetch_allow=(),
        alert_rules=None,
        alert_receivers=(),
        s3_settings={},
        dagster_on_postgres=False,
    )


def test_every_variable_is_read(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        IMAGE_ASSETS_STORAGE=str(tmp_path / "shared"),
        IMAGE_ASSETS_CACHES=str(tmp_path / "shared" / "caches"),
        IMAGE_ASSETS_DAGSTER_DATABASE="postgresql+psycopg2://me:secret@database/dagster",
        IMAGE_ASSETS_LANDING=str(tmp_path / "photos"),
        MLFLOW_TRACKING_URI="http://mlflow:5000",
        IMAGE_ASSETS_SPARK_MASTER="spark://spark:7077",
        IMAGE_ASSETS_EXECUTOR="spark",
        IMAGE_ASSETS_PROCESSES="4",
        IMAGE_ASSETS_BACKBONE="none",
        IMAGE_ASSETS_DEVICE="cuda",
        IMAGE_ASSETS_GPU_RUN_TAGS='{"queue": "gpu", "dagster-k8s/config": {"gpus": 1}}',
        IMAGE_ASSETS_OWNERS="team:plants",
        IMAGE_ASSETS_FRESH_HOURS="36",
        IMAGE_ASSETS_SPARK_GPUS="2",
        IMAGE_ASSETS_SPARK_TASKS_PER_GPU="8",
        IMAGE_ASSETS_INCLUDE="*.jpg, raw/*",
        IMAGE_ASSETS_EXCLUDE="thumbnails",
        IMAGE_ASSETS_LITTER=".*, @eaDir",
        IMAGE_ASSETS_LINK_ROOTS=str(tmp_path),
        IMAGE_ASSETS_LABEL_LEVEL="-1",
        IMAGE_ASSETS_MERGE_LABELS="on",
        IMAGE_ASSETS_SPLIT_FOLDERS="off",
        IMAGE_ASSETS_LABELS=str(tmp_path / "labels.csv"),
        IMAGE_ASSETS_PATH_COLUMN="photo",
        IMAGE_ASSETS_LABEL_COLUMN="none",
        IMAGE_ASSETS_DUPLICATES="exact",
        IMAGE_ASSETS_GROUP_BY="part",
        IMAGE_ASSETS_SAMPLES_PER_LABEL="20",
        IMAGE_ASSETS_SAMPLES_PER_FOLDER="4",
        IMAGE_ASSETS_SETTLE_SECONDS="0.5",
        IMAGE_ASSETS_LISTING_SECONDS="3600",
        IMAGE_ASSETS_WORKER_MEGABYTES="0",
        IMAGE_ASSETS_CONTENT_LIMIT_MB="64",
        IMAGE_ASSETS_SIZE_LIMIT_MB="2000",
        IMAGE_ASSETS_PIXEL_LIMIT="0.5",
        IMAGE_ASSETS_PAGE="first",
        IMAGE_ASSETS_DAGSTER_URL="https://dagster.example",
        IMAGE_ASSETS_GALLERY_URL="https://gallery.example",
        IMAGE_ASSETS_CACHE_CONTENT="jpeg",
        IMAGE_ASSETS_CACHE_COLOR="gray",
        IMAGE_ASSETS_CACHE_MEGABYTES="500",
        IMAGE_ASSETS_FETCH_ALLOW="private_addresses, local_files",
        IMAGE_ASSETS_ALERT_RULES=str(tmp_path / "rules.yaml"),
        IMAGE_ASSETS_ALERT_TEAM="slack://a/b/c",
        IMAGE_ASSETS_ALERT_ONCALL="mailto://me:secret@example.com",
    )
    assert settings == Settings(
        home=tmp_path,
        storage=tmp_path / "shared",
        caches=tmp_path / "shared" / "caches",
        landing=tmp_path / "photos",
        tracking_uri="http://mlflow:5000",
        spark_master="spark://spark:7077",
        executor="spark",
        processes=4,
        backbone="none",
        device="cuda",
        gpu_run_tags={"queue": "gpu", "dagster-k8s/config": '{"gpus": 1}'},
        spark_gpus=2,
        tasks_per_gpu=8,
        dagster_url="https://dagster.example",
        mlflow_url="http://mlflow:5000",
        owners=("team:plants",),
        freshness=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36)),
        gallery_url="https://gallery.example",
        include=("*.jpg", "raw/*"),
        exclude=("thumbnails",),
        litter=(".*", "@eaDir"),
        link_roots=(str(tmp_path),),
        label_level=-1,
        merge_labels=True,
        split_folders="off",
        labels=str(tmp_path / "labels.csv"),
        path_column="photo",
        label_column="none",
        duplicates="exact",
        group_by="part",
        samples_per_label=20,
        samples_per_folder=4,
        settle_seconds=0.5,
        listing_seconds=3600,
        worker_megabytes=0,
        events="",
        content_limit_megabytes=64,
        size_limit_megabytes=2000,
        pixel_limit_millions=0.5,
        page="first",
        cache_content="jpeg",
        cache_color="gray",
        cache_megabytes=500,
        fetch_allow=("private_addresses", "local_files"),
        alert_rules=tmp_path / "rules.yaml",
        alert_receivers=("oncall", "team"),
        s3_settings={},
        dagster_on_postgres=True,
    )
    assert "secret" not in repr(settings)


def test_links_lead_to_where_make_dev_or_a_server_serves(tmp_path: Path) -> None:
    moved = settings_of(tmp_path, DAGSTER_PORT="3001", MLFLOW_PORT="5001")
    assert (moved.dagster_url, moved.mlflow_url) == ("http://127.0.0.1:3001", "http://127.0.0.1:5001")
    server = settings_of(tmp_path, MLFLOW_TRACKING_URI="https://mlflow.example/tracking/")
    assert server.mlflow_url == "https://mlflow.example/tracking"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGE_ASSETS_SETTLE_SECONDS", "-1"),
        ("IMAGE_ASSETS_SETTLE_SECONDS", "soon"),
        ("IMAGE_ASSETS_CONTENT_LIMIT_MB", "2048"),
        ("IMAGE_ASSETS_CONTENT_LIMIT_MB", "0"),
        ("IMAGE_ASSETS_SIZE_LIMIT_MB", "nan"),
        ("IMAGE_ASSETS_PIXEL_LIMIT", "0"),
        ("IMAGE_ASSETS_CACHE_MEGABYTES", "0"),
    ],
)
def test_a_number_out_of_bounds_is_rejected_by_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '{value}': expected a number from .* to "):
        settings_of(tmp_path, **{name: value})


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    names = ["IMAGE_ASSETS_LANDING", "MLFLOW_TRACKING_URI", "IMAGE_ASSETS_PROCESSES", "IMAGE_ASSETS_BACKBONE"]
    assert settings_of(tmp_path, **dict.fromkeys(names, "")) == settings_of(tmp_path)


def test_a_home_remembers_its_landing_folder_and_a_variable_overrides_it(tmp_path: Path) -> None:
    write_landing(settings_of(tmp_path).home, Path("/photos"))
    assert settings_of(tmp_path).landing == Path("/photos")
    assert settings_of(tmp_path, IMAGE_ASSETS_LANDING="/others").landing == Path("/others")


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings({"IMAGE_ASSETS_HOME": "h", "IMAGE_ASSETS_LANDING": "l", "IMAGE_ASSETS_BACKBONE": "w"})
    assert (settings.home, settings.landing) == (tmp_path / "h", tmp_path / "l")
    assert settings.backbone == str(tmp_path / "w")


@pytest.mark.parametrize("processes", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_processes_is_rejected_by_name(tmp_path: Path, processes: str) -> None:
    with pytest.raises(ValueError, match=f"IMAGE_ASSETS_PROCESSES is '{processes}': expected a number from 1"):
        settings_of(tmp_path, IMAGE_ASSETS_PROCESSES=processes)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("IMAGE_ASSETS_DEVICE", "tpu", "auto, cpu, cuda"),
        ("IMAGE_ASSETS_DUPLICATES", "similar", "near, exact, off"),
        ("IMAGE_ASSETS_CACHE_CONTENT", "png", "original, jpeg, pixels"),
        ("IMAGE_ASSETS_CACHE_COLOR", "grey", "rgb, gray"),
    ],
)
def test_a_value_that_is_not_a_choice_is_rejected_by_name(tmp_path: Path, name: str, value: str, choices: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '{value}': expected one of {choices}"):
        settings_of(tmp_path, **{name: value})


@pytest.mark.parametrize("value", ["gpu", "[1]"])
def test_tags_that_are_not_a_json_object_are_rejected_with_an_example(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"IMAGE_ASSETS_GPU_RUN_TAGS is .*: expected a JSON object, such as \{"):
        settings_of(tmp_path, IMAGE_ASSETS_GPU_RUN_TAGS=value)


def test_owners_and_freshness_are_unset_by_default(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, IMAGE_ASSETS_OWNERS="team:plants, ada@example.com", IMAGE_ASSETS_FRESH_HOURS="24")
    assert settings.owners == ("team:plants", "ada@example.com")
    assert settings.freshness is not None
    assert settings_of(tmp_path).owners == ()
    assert settings_of(tmp_path).freshness is None


@pytest.mark.parametrize("owner", ["plants", "team:", "ada@example"])
def test_an_owner_is_a_team_or_a_mail_address(tmp_path: Path, owner: str) -> None:
    with pytest.raises(
        ValueError, match=f"IMAGE_ASSETS_OWNERS has '{owner}': expected an email address or team:<name>"
    ):
        settings_of(tmp_path, IMAGE_ASSETS_OWNERS=owner)


def artifact_url_of(settings: Settings) -> object:
    """Where the tracking resource of these settings puts artifacts."""
    return create_resources(settings)["mlflow_tracking"].artifact_url


def test_resources_follow_the_settings(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        IMAGE_ASSETS_INCLUDE="*.jpg, raw/*",
        IMAGE_ASSETS_EXCLUDE="thumbnails",
        IMAGE_ASSETS_SETTLE_SECONDS="0.5",
        IMAGE_ASSETS_CONTENT_LIMIT_MB="64",
        IMAGE_ASSETS_SIZE_LIMIT_MB="2000",
        IMAGE_ASSETS_PIXEL_LIMIT="0.5",
        IMAGE_ASSETS_PAGE="first",
        IMAGE_ASSETS_CACHE_CONTENT="jpeg",
        IMAGE_ASSETS_CACHE_COLOR="gray",
        IMAGE_ASSETS_CACHE_MEGABYTES="500",
        IMAGE_ASSETS_FETCH_ALLOW="private_addresses, local_files",
        IMAGE_ASSETS_ALERT_RULES=str(tmp_path / "rules.yaml"),
        IMAGE_ASSETS_ALERT_ONCALL="json://secret",
    )
    folder = image_folder(settings)
    assert (folder.include, folder.exclude, folder.settle_seconds) == (["*.jpg", "raw/*"], ["thumbnails"], 0.5)
    assert (folder.content_limit_bytes, folder.size_limit_bytes) == (64 * 1024**2, 2000 * 1024**2)
    assert (folder.pixel_limit, folder.page) == (500_000, "first")
    caches = petastorm_caches(settings, side_pixels=96)
    assert (caches.content, caches.color, caches.keep_megabytes, caches.side_pixels) == ("jpeg", "gray", 500, 96)
    assert rules_file(settings) == RulesFile(path=str(tmp_path / "rules.yaml"), required=True)
    assert alert_sender(settings).addresses["oncall"] == dg.EnvVar("IMAGE_ASSETS_ALERT_ONCALL")


def test_artifacts_are_in_the_home_unless_a_server_tracks(tmp_path: Path) -> None:
    assert artifact_url_of(settings_of(tmp_path)) == (settings_of(tmp_path).home / "mlartifacts").as_uri()
    assert artifact_url_of(settings_of(tmp_path, MLFLOW_TRACKING_URI="http://mlflow:5000")) is None


def test_creating_the_resources_touches_nothing(tmp_path: Path) -> None:
    resources = create_resources(settings_of(tmp_path / "home"))
    assert resources["delta_tables"].root == str(tmp_path / "home" / "tables")
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_can_allow_is_rejected_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FETCH_ALLOW has 'all': expected private_addresses or local_files"):
        settings_of(tmp_path, IMAGE_ASSETS_FETCH_ALLOW="local_files, all")


def test_litter_can_be_taken_in_and_roots_of_links_must_exist(tmp_path: Path) -> None:
    assert settings_of(tmp_path, IMAGE_ASSETS_LITTER="none").litter == ()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    roots = settings_of(tmp_path, IMAGE_ASSETS_LINK_ROOTS=f"{tmp_path}/link").link_roots
    assert roots == (f"{tmp_path}/there",)
    for root in (f"{tmp_path}/nowhere", "s3://bucket"):
        with pytest.raises(ValueError, match=f"IMAGE_ASSETS_LINK_ROOTS has '{root}': expected an existing folder"):
            settings_of(tmp_path, IMAGE_ASSETS_LINK_ROOTS=root)


@pytest.mark.parametrize("level", ["0", "one", "1.5", "--1", "-0"])
def test_the_level_of_labels_is_a_number(tmp_path: Path, level: str) -> None:
    with pytest.raises(ValueError, match=f"IMAGE_ASSETS_LABEL_LEVEL is '{level}': expected 1 for the first level"):
        settings_of(tmp_path, IMAGE_ASSETS_LABEL_LEVEL=level)
