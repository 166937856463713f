"""Every setting that differs between machines, read in one place.

| variable | default | what it says |
|---|---|---|
| `IMAGE_ASSETS_HOME` | `.image_assets` in the working folder | where everything that is kept lies |
| `IMAGE_ASSETS_STORAGE` | the home | where tables, checkpoints and artifacts lie: a folder, or `s3://bucket/prefix` |
| `IMAGE_ASSETS_CACHES` | `caches` in the home | the training caches: a folder that all machines see |
| `IMAGE_ASSETS_LANDING` | the folder this home was made for, else `landing` in the home | where image files land |
| `MLFLOW_TRACKING_URI` | `mlflow.db` in the home | where MLflow tracks runs and keeps the registry; no password in it |
| `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` | none | the account on an MLflow server |
| `IMAGE_ASSETS_SPARK_MASTER` | `local[*]` | the Spark cluster |
| `IMAGE_ASSETS_PROCESSES` | `2` | processes (ranks) that a training runs on |
| `IMAGE_ASSETS_BACKBONE` | `auto` | `auto`, `imagenet`, `none`, or a folder with weight files |
| `IMAGE_ASSETS_CACHE_CONTENT` | `original` | what training caches hold of an image: `original`, `jpeg` or `pixels` |
| `IMAGE_ASSETS_CACHE_COLOR` | `rgb` | `rgb`, or `gray`: models are trained on gray, and look at every image in gray |
| `IMAGE_ASSETS_CACHE_MEGABYTES` | `16384` | how large all caches together may be, but for those that are needed |
| `IMAGE_ASSETS_DAGSTER_DATABASE` | SQLite in the home | Dagster's runs and events: `postgresql+psycopg2://…` |
| `IMAGE_ASSETS_DEVICE` | `auto` | where predictions are made: `auto`, `cpu` or `cuda` |
| `IMAGE_ASSETS_GPU_RUN_TAGS` | none | JSON: tags by which a run launcher gives prediction runs a GPU |
| `IMAGE_ASSETS_SPARK_GPUS` | `0` | GPUs of each Spark executor on a cluster |
| `IMAGE_ASSETS_SPARK_TASKS_PER_GPU` | `4` | tasks that share a GPU: all of them decode, each on a core |
| `IMAGE_ASSETS_DAGSTER_URL` | `http://127.0.0.1:3000` | where people see Dagster: links in MLflow lead there |
| `IMAGE_ASSETS_MLFLOW_URL` | the tracking server, or `http://127.0.0.1:5000` | the same for links in Dagster |
| `IMAGE_ASSETS_OWNERS` | none | whose the assets are: mail addresses and `team:<name>`, separated by commas |
| `IMAGE_ASSETS_FRESH_HOURS` | none | after how many hours without a materialization Dagster shows a table as overdue |
| `IMAGE_ASSETS_GALLERY_URL` | `http://127.0.0.1:4000` | where people see the gallery: links in Dagster lead there |
| `IMAGE_ASSETS_INCLUDE` | image suffixes | patterns of file names to take in, separated by commas |
| `IMAGE_ASSETS_EXCLUDE` | none | patterns of files and folders to leave out, separated by commas |
| `IMAGE_ASSETS_LABELS` | none: folders | labels by path: a CSV or Parquet file, or a Delta table; a path, or `s3://…` |
| `IMAGE_ASSETS_SETTLE_SECONDS` | `2` | how long a file must be unchanged to be taken as whole |
| `IMAGE_ASSETS_LISTING_SECONDS` | `10` | how often a sensor lists the landing folder, at most |
| `IMAGE_ASSETS_EVENTS` | none | the URL of the SQS queue with the events of a landing folder on S3 |
| `IMAGE_ASSETS_CONTENT_LIMIT_MB` | `512` | files above it are rows without content |
| `IMAGE_ASSETS_SIZE_LIMIT_MB` | `16384` | files above it are quarantined |
| `IMAGE_ASSETS_ALERT_RULES` | `alert_rules.yaml` in the home, where it exists | the alert rules |
| `IMAGE_ASSETS_ALERT_<NAME>` | none | the address of the receiver `<name>`, as apprise writes it |

MLflow itself reads its account: `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, get_args
from urllib.parse import parse_qs, urlsplit

import dagster as dg

from resources.alerts import ADDRESS_PREFIX, AlertSender, RulesFile
from resources.backbone import Backbone
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import OutsideTable
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.row_groups import Color, Content
from resources.delta.spark_session import gpu_settings, is_local, spark_session
from resources.devices import InferenceDevice
from resources.files import s3
from resources.files.file_system import is_url
from resources.files.image_folder import ImageFolder
from resources.files.storage_events import StorageEvents
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelPackages, ModelRegistry
from resources.processes.training_processes import TrainingProcesses

DEVICES = ("auto", "cpu", "cuda")
LOCAL_MASTER = "local[*]"
RULES_VARIABLE = f"{ADDRESS_PREFIX}RULES"
DATABASE_VARIABLE = "IMAGE_ASSETS_DAGSTER_DATABASE"
POSTGRES = "postgresql+psycopg2://"  # without the driver's name SQLAlchemy takes another one
HTTP = ("http:", "https:")
PASSWORD_NAMES = {"password", "passwd", "pwd", "token"}  # of a database's settings, in lower case
Choice = TypeVar("Choice", bound=str)
MAX_CONTENT_MEGABYTES = 1900  # megabytes: neither Delta nor Arrow can carry 2 GiB in a row


@dataclass(frozen=True)
class Settings:
    """What the environment variables say, checked."""

    home: Path
    storage: Path | str  # a URL stays as it is
    caches: Path
    landing: Path | str
    tracking_uri: str
    spark_master: str
    processes: int
    backbone: str
    device: str
    gpu_run_tags: dict[str, str]
    spark_gpus: int
    tasks_per_gpu: int
    dagster_url: str
    mlflow_url: str
    owners: tuple[str, ...]
    freshness: dg.FreshnessPolicy | None
    gallery_url: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    labels: str
    settle_seconds: float
    listing_seconds: int
    events: str
    content_limit_megabytes: float
    size_limit_megabytes: float
    cache_content: Content
    cache_color: Color
    cache_megabytes: float
    alert_rules: Path | None  # None: those of the home, where there are any
    alert_receivers: tuple[str, ...]  # names only: their addresses hold passwords
    s3_settings: dict[str, str]  # what Spark is told of S3; nothing where nothing lies there
    dagster_on_postgres: bool  # its address holds a password, which Dagster itself reads

    @property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its runs, events and schedules."""
        return self.home / "dagster"

    @property
    def artifacts(self) -> str:
        """The folder of MLflow's artifacts, as a URL."""
        artifacts = f"{self.storage}/mlartifacts"
        return artifacts if is_url(artifacts) else Path(artifacts).as_uri()

    @property
    def remembered_landing(self) -> Path:
        """The file in which a home keeps the landing folder that it was made for."""
        return self.home / "landing_folder"


def read_settings(variables: Mapping[str, str] = os.environ) -> Settings:
    """The settings; a ValueError says which variable is wrong and what it should be."""
    home = to_folder(variables.get("IMAGE_ASSETS_HOME") or ".image_assets")
    remembered = home / "landing_folder"
    landing = variables.get("IMAGE_ASSETS_LANDING") or (
        remembered.read_text().strip() if remembered.is_file() else home / "landing"
    )
    storage = variables.get("IMAGE_ASSETS_STORAGE") or home
    backbone = variables.get("IMAGE_ASSETS_BACKBONE") or "auto"
    if backbone not in ("auto", "imagenet", "none"):
        backbone = str(to_folder(backbone))
    rules = variables.get(RULES_VARIABLE)
    return Settings(
        home=home,
        storage=to_location(storage),
        caches=to_folder(variables.get("IMAGE_ASSETS_CACHES") or home / "caches"),
        landing=to_location(landing),
        tracking_uri=to_url(variables, "MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
        spark_master=variables.get("IMAGE_ASSETS_SPARK_MASTER") or LOCAL_MASTER,
        processes=to_count(variables, "IMAGE_ASSETS_PROCESSES", 2),
        backbone=backbone,
        device=to_choice(variables, "IMAGE_ASSETS_DEVICE", DEVICES),
        gpu_run_tags=to_tags(variables.get("IMAGE_ASSETS_GPU_RUN_TAGS")),
        spark_gpus=to_spark_gpus(variables),
        tasks_per_gpu=to_count(variables, "IMAGE_ASSETS_SPARK_TASKS_PER_GPU", 4),
        dagster_url=to_url(variables, "IMAGE_ASSETS_DAGSTER_URL") or local_url("DAGSTER_PORT", 3000, variables),
        mlflow_url=to_mlflow_url(variables),
        owners=to_owners(variables.get("IMAGE_ASSETS_OWNERS")),
        freshness=to_freshness(variables),
        gallery_url=variables.get("IMAGE_ASSETS_GALLERY_URL") or local_url("GALLERY_PORT", 4000, variables),
        include=to_patterns(variables.get("IMAGE_ASSETS_INCLUDE")),
        exclude=to_patterns(variables.get("IMAGE_ASSETS_EXCLUDE")),
        labels=to_table_location(variables, "IMAGE_ASSETS_LABELS"),
        settle_seconds=to_number(variables, "IMAGE_ASSETS_SETTLE_SECONDS", "2", minimum=0),
        listing_seconds=to_count(variables, "IMAGE_ASSETS_LISTING_SECONDS", 10),
        events=to_queue(variables, str(landing)),
        content_limit_megabytes=to_number(
            variables, "IMAGE_ASSETS_CONTENT_LIMIT_MB", "512", maximum=MAX_CONTENT_MEGABYTES
        ),
        size_limit_megabytes=to_number(variables, "IMAGE_ASSETS_SIZE_LIMIT_MB", "16384"),
        cache_content=to_choice(variables, "IMAGE_ASSETS_CACHE_CONTENT", get_args(Content)),
        cache_color=to_choice(variables, "IMAGE_ASSETS_CACHE_COLOR", get_args(Color)),
        cache_megabytes=to_number(variables, "IMAGE_ASSETS_CACHE_MEGABYTES", "16384"),
        alert_rules=to_folder(rules) if rules else None,
        alert_receivers=receiver_names(variables),
        s3_settings=to_s3_settings(str(storage), str(landing), variables),
        dagster_on_postgres=is_on_postgres(variables.get(DATABASE_VARIABLE)),
    )


def to_choice(variables: Mapping[str, str], name: str, choices: Sequence[Choice]) -> Choice:
    """The variable's value, the first of the choices where it has none; a ValueError when it is another one."""
    value = variables.get(name) or choices[0]
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}")
    return choices[choices.index(value)]


def to_count(variables: Mapping[str, str], name: str, default: int, *, minimum: int = 1) -> int:
    """The variable's whole number; a ValueError when it is none or too small."""
    value = variables.get(name) or str(default)
    if not value.isdecimal() or int(value) < minimum:
        raise ValueError(f"{name} is {value!r}: expected a number from {minimum}, such as {default}")
    return int(value)


def to_spark_gpus(variables: Mapping[str, str]) -> int:
    """GPUs of each executor; a ValueError on a local master, whose tasks would wait for them for ever."""
    gpus = to_count(variables, "IMAGE_ASSETS_SPARK_GPUS", 0, minimum=0)
    master = variables.get("IMAGE_ASSETS_SPARK_MASTER") or LOCAL_MASTER
    if gpus and is_local(master):
        raise ValueError(
            f"IMAGE_ASSETS_SPARK_GPUS is {gpus} on the Spark master {master}, which hands out none: expected the "
            "master of a cluster; leave it out here, where this machine's GPU is used without it"
        )
    return gpus


def to_tags(value: str | None) -> dict[str, str]:
    """Tags from a JSON object; values that are no texts stay JSON, as Dagster's launchers read them."""
    try:
        tags = json.loads(value or "{}")
        return {name: tag if isinstance(tag, str) else json.dumps(tag) for name, tag in tags.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"IMAGE_ASSETS_GPU_RUN_TAGS is {value!r}: expected a JSON object, such as "
            '{"dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}}'
        ) from error


def local_url(port: str, default: int, variables: Mapping[str, str]) -> str:
    """Where `make dev` serves a page."""
    return f"http://127.0.0.1:{variables.get(port) or default}"


def to_url(variables: Mapping[str, str], name: str) -> str:
    """The variable's address; a ValueError where it holds a password: Dagster and MLflow show and log addresses."""
    value = variables.get(name) or ""
    if value.startswith(HTTP):
        found, remedy = "@" in value, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are for MLflow's account"
    else:
        parts = urlsplit(value)
        found = parts.password is not None or not PASSWORD_NAMES.isdisjoint(map(str.lower, parse_qs(parts.query)))
        remedy = "let the database's library find it, in ~/.pgpass for instance, or put an MLflow server in front"
    if found:
        raise ValueError(
            f"{name} holds a password or an account, which would be shown to people: leave it out; {remedy}"
        )
    return value


def to_mlflow_url(variables: Mapping[str, str]) -> str:
    """Where people see MLflow: the tracking server, or where `make dev` serves it."""
    server = to_url(variables, "MLFLOW_TRACKING_URI").rstrip("/")
    named = to_url(variables, "IMAGE_ASSETS_MLFLOW_URL")
    return named or (server if server.startswith(HTTP) else local_url("MLFLOW_PORT", 5000, variables))


def to_number(
    variables: Mapping[str, str], name: str, default: str, *, minimum: float = 0.001, maximum: float = 1e9
) -> float:
    """The variable's number; a ValueError when it is none or out of bounds."""
    value = variables.get(name) or default
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} is {value!r}: expected a number from {minimum:g} to {maximum:g}, such as {default}")
    return number


def to_patterns(value: str | None) -> tuple[str, ...]:
    """Patterns as a shell has them, such as `*.jpg, raw/*`."""
    return tuple(pattern.strip() for pattern in (value or "").split(",") if pattern.strip())


def to_owners(value: str | None) -> tuple[str, ...]:
    """Owners as Dagster takes them; a ValueError for one that is neither an address nor a team."""
    owners = to_patterns(value)
    for owner in owners:
        if not re.fullmatch(r"team:[A-Za-z0-9._ -]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
            raise ValueError(f"IMAGE_ASSETS_OWNERS has {owner!r}: expected a mail address or team:<name>")
    return owners


def to_freshness(variables: Mapping[str, str]) -> dg.FreshnessPolicy | None:
    """When a table is overdue; None where nobody said so: files come when they come."""
    name = "IMAGE_ASSETS_FRESH_HOURS"
    if not variables.get(name):
        return None
    hours = to_number(variables, name, "24", minimum=1 / 60)
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))


def to_s3_settings(storage: str, landing: str, variables: Mapping[str, str]) -> dict[str, str]:
    """What Spark is told where storage or landing folder lie on S3; a ValueError when they cannot be opened there."""
    s3.require_supported_location("IMAGE_ASSETS_STORAGE", storage, variables)
    on_s3 = any(location.startswith(s3.SCHEME) for location in (storage, landing))
    return s3.spark_settings(variables) if on_s3 else {}


def is_on_postgres(address: str | None) -> bool:
    """Whether there is an address of a database; a ValueError, without its password, when Dagster cannot open it."""
    if address and not address.startswith("postgresql+psycopg2://"):
        scheme = address.partition(":")[0]
        raise ValueError(
            f"{DATABASE_VARIABLE} begins with {scheme!r}: expected postgresql+psycopg2://user:password@host/name"
        )
    return bool(address)


def to_location(name: str | Path) -> Path | str:
    """A URL as it is, a local folder by its one absolute name."""
    return str(name).rstrip("/") if is_url(str(name)) else to_folder(name)


def to_table_location(variables: Mapping[str, str], name: str) -> str:
    """A table that somebody else keeps, on disk or on S3; nothing where none is named."""
    location = to_url(variables, name)
    s3.require_supported_location(name, location, variables)
    return str(to_location(location)) if location else ""


def to_queue(variables: Mapping[str, str], landing: str) -> str:
    """The queue of events; a ValueError where it is none, or tells of no landing folder on S3."""
    queue = to_url(variables, "IMAGE_ASSETS_EVENTS")
    if queue and not (queue.startswith(HTTP) and landing.startswith(s3.SCHEME)):
        raise ValueError(
            f"IMAGE_ASSETS_EVENTS is {queue!r}, and the landing folder {landing}: expected the https address of an SQS "
            f"queue, and a landing folder on {s3.SCHEME}"
        )
    return queue


def to_folder(name: str | Path) -> Path:
    """The folder's one absolute name: tables hold the paths of files, and the same file must have the same path."""
    return Path(name).expanduser().resolve()


def receiver_names(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The receivers of alerts that have an address, by name."""
    named = {name for name, value in variables.items() if name.startswith(ADDRESS_PREFIX) and name.isupper() and value}
    return tuple(sorted(name.removeprefix(ADDRESS_PREFIX).lower() for name in named - {RULES_VARIABLE}))


MEGABYTE = 1024 * 1024


def image_folder(settings: Settings) -> ImageFolder:
    """The landing folder, with what is taken in of it."""
    return ImageFolder(
        root=str(settings.landing),
        include=list(settings.include),
        exclude=list(settings.exclude),
        settle_seconds=settings.settle_seconds,
        content_limit_bytes=int(settings.content_limit_megabytes * MEGABYTE),
        size_limit_bytes=int(settings.size_limit_megabytes * MEGABYTE),
    )


def petastorm_caches(settings: Settings) -> PetastormCaches:
    """The training caches, with what they hold and how much of them is kept."""
    return PetastormCaches(
        root=str(settings.caches),
        content=settings.cache_content,
        color=settings.cache_color,
        keep_megabytes=settings.cache_megabytes,
    )


def artifact_url(settings: Settings) -> str | None:
    """The storage's folder for artifacts; None where a tracking server says where they are, and who may read them."""
    return None if settings.tracking_uri.startswith(HTTP) else settings.artifacts


def alert_sender(settings: Settings) -> AlertSender:
    """The receivers of alerts; Dagster reads their addresses when a run needs them, and shows the variables' names."""
    variables = {name: f"{ADDRESS_PREFIX}{name.upper()}" for name in settings.alert_receivers}
    return AlertSender(addresses={name: dg.EnvVar(variable) for name, variable in variables.items()})


def rules_file(settings: Settings) -> RulesFile:
    """The file of the alert rules."""
    path = settings.alert_rules or settings.home / "alert_rules.yaml"
    return RulesFile(path=str(path), required=settings.alert_rules is not None)


def create_resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """The resources of a process: what it keeps lies in the home folder, but for what the settings move elsewhere."""
    tables = f"{settings.storage}/tables"
    spark = spark_session(
        settings.spark_master,
        scratch=str(settings.home / "spark"),
        more=settings.s3_settings | gpu_settings(settings.spark_gpus, settings.tasks_per_gpu),
    )
    return {
        "pyspark": spark,
        "delta_tables": DeltaTables(pyspark=spark, root=tables, checkpoints=f"{settings.storage}/checkpoints"),
        "image_folder": image_folder(settings),
        "events": StorageEvents(queue=settings.events),
        "label_table": OutsideTable(source=settings.labels),
        "petastorm_caches": petastorm_caches(settings),
        "training_processes": TrainingProcesses(processes=settings.processes),
        "backbone": Backbone(source=settings.backbone),
        "inference_device": InferenceDevice(choice=settings.device, run_tags=settings.gpu_run_tags),
        "mlflow_tracking": MlflowTracking(
            tracking_uri=settings.tracking_uri,
            artifact_url=artifact_url(settings),
            ui_url=settings.mlflow_url,
            dagster_url=settings.dagster_url,
        ),
        "model_registry": ModelRegistry(tracking_uri=settings.tracking_uri),
        "model_packages": ModelPackages(root=str(settings.home / "packages")),
        "alert_sender": alert_sender(settings),
        "rules_file": rules_file(settings),
    }
