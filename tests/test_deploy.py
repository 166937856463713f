"""What can be known of the files in deploy/ without an engine: they agree with each other and with the settings."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from resources import settings
from resources.settings import DATABASE_VARIABLE, Settings, read_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
VALUES = yaml.safe_load((DEPLOY / "dagster-values.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
KNOWN = set(re.findall(r"`([A-Z_]{4,})`", settings.__doc__ or ""))
WITH_SECRETS = {"POSTGRES_PASSWORD": "a-password", "S3_SECRET": "a-secret"}
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]


def filled(said: str) -> str:
    """A text of compose.yaml with its variables replaced, as Compose does it."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: WITH_SECRETS[found[1]], said)


def settings_of(variables: dict[str, str]) -> Settings:
    """What the graph makes of a service's variables; every name is one that is read."""
    assert {name for name in variables if name.startswith("IMAGE_ASSETS_")} <= KNOWN
    return read_settings({name: filled(said) for name, said in variables.items()})


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from COMPOSE["services"].items()


@pytest.mark.parametrize("name", ["prepare", "code-server", "daemon", "webserver"])
def test_the_services_of_dagster_share_storage_database_and_master(name: str) -> None:
    settings = settings_of(COMPOSE["services"][name]["environment"])
    assert settings.dagster_on_postgres
    assert (settings.storage, settings.landing) == ("s3://image-assets/kept", "s3://image-assets/landing")
    assert settings.spark_master == "spark://spark-master:7077"


def test_what_a_service_names_is_there() -> None:
    for name, service in services():
        needs = service.get("depends_on", {})
        assert set(needs) <= set(COMPOSE["services"]), name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        mounts = [mount.split(":")[0] for mount in service.get("volumes", [])]
        assert {mount for mount in mounts if not mount.startswith(".")} <= set(COMPOSE["volumes"]), name
        assert all((DEPLOY / mount).is_file() for mount in mounts if mount.startswith(".")), name


def test_pages_are_for_this_machine_only_and_images_are_pinned() -> None:
    for name, service in services():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["image"] == "image-assets" or re.search(r":.*\d", service["image"]), name
    assert re.search(r"ARG PYTHON=python:3\.11\.\d+-slim-\w+", DOCKERFILE)


def test_no_secret_is_in_a_file_and_workers_get_none() -> None:
    worker = COMPOSE["services"]["spark-worker"]
    assert "environment" not in worker
    for _, service in services():
        for name, said in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET", name) or name in (DATABASE_VARIABLE, "MLFLOW_BACKEND_STORE_URI"):
                assert re.search(r"\$\{\w+:\?", said), name
    example = (DEPLOY / "environment.example").read_text().splitlines()
    assert [line for line in example if not line.startswith("#")] == [f"{name}=" for name in WITH_SECRETS]


def test_the_image_is_built_of_what_is_there() -> None:
    let_in = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for line in re.findall(r"^COPY ([^-].*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in let_in), source
    assert "USER 10001" in DOCKERFILE


def test_the_charts_values_are_settings_and_gpu_runs_are_limited() -> None:
    variables = {entry["name"]: entry["value"] for entry in CODE["env"]}
    settings = settings_of({**variables, "AWS_ENDPOINT_URL": "https://s3.example"})
    assert settings.storage == "s3://image-assets/kept"
    assert {mount["mountPath"] for mount in CODE["volumeMounts"]} == {str(settings.caches)}
    (limit,) = VALUES["concurrency"]["runs"]["tagConcurrencyLimits"]
    assert settings.gpu_run_tags[limit["key"]] == limit["value"]
    asked = json.loads(settings.gpu_run_tags["dagster-k8s/config"])
    assert asked["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert VALUES["concurrency"]["pools"] == {"defaultLimit": 1, "granularity": "op"}


def test_one_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"', project, re.MULTILINE)
    (dagster,) = re.findall(r'"dagster==(.+?)"', project)
    assert CODE["image"]["tag"] == version
    assert f"registry.example/image-assets:{version}" in (DEPLOY / "kubernetes.yaml").read_text()
    assert f"--version {dagster} " in (DEPLOY / "dagster-values.yaml").read_text()
    claims = [part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())]
    assert claims[0]["metadata"]["name"] == CODE["volumes"][0]["persistentVolumeClaim"]["claimName"]
