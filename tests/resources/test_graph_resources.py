"""Resources are as the settings say."""

from pathlib import Path

import dagster as dg

from resources.alerts import RulesFile
from resources.settings import (
    Settings,
    alert_sender,
    artifact_url,
    create_resources,
    image_folder,
    petastorm_caches,
    read_settings,
    rules_file,
)


def settings_of(home: Path, **variables: str) -> Settings:
    return read_settings({"IMAGE_ASSETS_HOME": str(home), **variables})


def test_resources_are_as_the_settings_say(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        IMAGE_ASSETS_INCLUDE="*.jpg, raw/*",
        IMAGE_ASSETS_EXCLUDE="thumbnails",
        IMAGE_ASSETS_SETTLE_SECONDS="0.5",
        IMAGE_ASSETS_CONTENT_LIMIT_MB="64",
        IMAGE_ASSETS_SIZE_LIMIT_MB="2000",
        IMAGE_ASSETS_CACHE_CONTENT="jpeg",
        IMAGE_ASSETS_CACHE_COLOR="gray",
        IMAGE_ASSETS_CACHE_MEGABYTES="500",
        IMAGE_ASSETS_ALERT_RULES=str(tmp_path / "rules.yaml"),
        IMAGE_ASSETS_ALERT_ONCALL="json://secret",
    )
    folder = image_folder(settings)
    assert (folder.include, folder.exclude, folder.settle_seconds) == (["*.jpg", "raw/*"], ["thumbnails"], 0.5)
    assert (folder.content_limit_bytes, folder.size_limit_bytes) == (64 * 1024**2, 2000 * 1024**2)
    caches = petastorm_caches(settings)
    assert (caches.content, caches.color, caches.keep_megabytes) == ("jpeg", "gray", 500)
    assert rules_file(settings) == RulesFile(path=str(tmp_path / "rules.yaml"), required=True)
    assert alert_sender(settings).addresses["oncall"] == dg.EnvVar("IMAGE_ASSETS_ALERT_ONCALL")


def test_artifacts_are_the_homes_unless_a_server_tracks(tmp_path: Path) -> None:
    assert artifact_url(settings_of(tmp_path)) == (settings_of(tmp_path).home / "mlartifacts").as_uri()
    assert artifact_url(settings_of(tmp_path, MLFLOW_TRACKING_URI="http://mlflow:5000")) is None


def test_making_the_resources_touches_nothing(tmp_path: Path) -> None:
    resources = create_resources(settings_of(tmp_path / "home"))
    assert resources["delta_tables"].root == str(tmp_path / "home" / "tables")
    assert list(tmp_path.iterdir()) == []
