"""What can be known of the files in deploy/ without an engine: they agree with each other and with the settings."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from resources import settings
from resources.setting_values import DATABASE_VARIABLE
from resources.settings import Settings, read_settings
from tests.support.wheels import build_wheel, package_files

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


@pytest.mark.parametrize("name", ["prepare", "code-server", "daemon", "webserver", "gallery"])
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


def sent_to_the_engine(file: Path) -> bool:
    """Whether Dockerfile.dockerignore lets a file (relative to the root) through: the last matching line decides."""
    sent = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = file.parts if "**/" in line else ["/".join(file.parts[: end + 1]) for end in range(len(file.parts))]
        if any(fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


@pytest.fixture(scope="module")
def build_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the Dockerfile's build stage installs from, with exactly the files that it copies."""
    folder = tmp_path_factory.mktemp("build_stage")
    stage = DOCKERFILE.split("\nFROM ")[1]
    for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        *sources, target = line.split()
        for source in map(Path, sources):
            files = (ROOT / source).rglob("*") if (ROOT / source).is_dir() else [ROOT / source]
            base = source if (ROOT / source).is_dir() else source.parent
            for file in files:
                if file.is_file() and sent_to_the_engine(file.relative_to(ROOT)):
                    copy = folder / target / file.relative_to(ROOT / base)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
    return folder


def test_the_build_stage_can_install_the_whole_project(build_stage: Path, tmp_path: Path) -> None:
    program = "from scripts.install import digest; digest()"
    subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[0:0] = ['.']; {program}"], cwd=build_stage, check=True
    )
    with ZipFile(build_wheel(build_stage, tmp_path)) as wheel:
        packed = set(map(Path, wheel.namelist()))
    assert {*package_files(), Path("definitions.py")} - packed == set()


def test_the_image_compiles_what_it_installs() -> None:
    stage = DOCKERFILE.split("\nFROM ")[1]
    sources = {source for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE) for source in line.split()[:-1]}
    (compiled,) = re.findall(r"--invalidation-mode unchecked-hash (.*\\\n.*)$", stage, re.MULTILINE)
    programs = {
        name for name in sources if any(file.suffix == ".py" for file in [Path(name), *(ROOT / name).rglob("*.py")])
    }
    assert {name for name in re.split(r"[\s\\]+", compiled) if not name.startswith(".venv")} == programs
    environment = "\nENV UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH\n"
    assert stage.index(environment) < stage.index("\nRUN python3.11 -m scripts.install")


def test_the_trial_is_a_program_that_bash_understands() -> None:
    assert os.access(DEPLOY / "try", os.X_OK)
    subprocess.run(["bash", "-n", DEPLOY / "try"], check=True)


def test_the_final_stage_copies_files_that_exist_and_runs_without_privileges() -> None:
    stage = DOCKERFILE.split("\nFROM ")[2]
    for line in re.findall(r"^COPY ([^-].*)$", stage, re.MULTILINE):
        for source in map(Path, line.split()[:-1]):
            assert (ROOT / source).is_file(), source
            assert sent_to_the_engine(source), source
    assert "USER 10001" in stage


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
