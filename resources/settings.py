"""Environment variables → typed settings → resources, read in this one place.

| variable | default | meaning |
|---|---|---|
| `IMAGE_ASSETS_HOME` | `.image_assets` in the working folder | the folder for all data |
| `IMAGE_ASSETS_STORAGE` | the home | storage for tables and artifacts: a folder or `s3://…` |
| `IMAGE_ASSETS_CACHES` | `caches` in the home | the training caches: a folder that all machines share |
| `IMAGE_ASSETS_LANDING` | set when the home is created, or `landing` in it | the landing folder: a path or URL |
| `MLFLOW_TRACKING_URI` | `mlflow.db` in the home | MLflow's tracking and model registry; without a password |
| `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` | none | the account on the MLflow server |
| `MLFLOW_TRACKING_TOKEN` | none | a token for the MLflow server, instead of an account |
| `IMAGE_ASSETS_SPARK_MASTER` | `local[*]` | the Spark master |
| `IMAGE_ASSETS_EXECUTOR` | `auto` | where tasks run: `local`, `spark`, or `auto`, by the amount of work |
| `IMAGE_ASSETS_PROCESSES` | `2` | processes (ranks) per training run |
| `IMAGE_ASSETS_BACKBONE` | `auto` | the backbone's weights: `auto`, `imagenet`, `none`, or a folder with weight files |
| `IMAGE_ASSETS_CACHE_CONTENT` | `original` | how training caches store images: `original`, `jpeg` or `pixels` |
| `IMAGE_ASSETS_CACHE_COLOR` | `rgb` | `rgb` or `gray`; `gray` also converts images to gray for predictions |
| `IMAGE_ASSETS_CACHE_MEGABYTES` | `16384` | maximum total size of the training caches, except for those in use |
| `IMAGE_ASSETS_DAGSTER_DATABASE` | SQLite in the home | Dagster's database: `postgresql+psycopg2://…` |
| `IMAGE_ASSETS_DEVICE` | `auto` | the device for predictions: `auto`, `cpu` or `cuda` |
| `IMAGE_ASSETS_GPU_RUN_TAGS` | none | run tags (JSON) that make a run launcher assign a GPU to prediction runs |
| `IMAGE_ASSETS_SPARK_GPUS` | `0` | GPUs per Spark executor on a cluster |
| `IMAGE_ASSETS_SPARK_TASKS_PER_GPU` | `4` | Spark tasks that share one GPU; each decodes images on its own core |
| `IMAGE_ASSETS_DAGSTER_URL` | `http://127.0.0.1:3000` | the Dagster UI, for links from MLflow |
| `IMAGE_ASSETS_MLFLOW_URL` | the tracking server, or `http://127.0.0.1:5000` | the MLflow UI, for links from Dagster |
| `IMAGE_ASSETS_OWNERS` | none | owners of the assets: email addresses and `team:<name>`, separated by commas |
| `IMAGE_ASSETS_FRESH_HOURS` | none | hours without a materialization before a table counts as overdue |
| `IMAGE_ASSETS_GALLERY_URL` | `http://127.0.0.1:4000` | the gallery, for links from Dagster and MLflow |
| `DAGSTER_PORT`, `GALLERY_PORT`, `MLFLOW_PORT` | `3000`, `4000`, `5000` | the ports of `image-assets dev` |
| `IMAGE_ASSETS_INCLUDE` | image suffixes | file name patterns to import, separated by commas |
| `IMAGE_ASSETS_EXCLUDE` | none | file and folder name patterns to skip, separated by commas |
| `IMAGE_ASSETS_LITTER` | hidden files, trash, thumbnails | more patterns to skip; `none` skips nothing else |
| `IMAGE_ASSETS_LINK_ROOTS` | none | folders that links in the landing folder may lead to, separated by commas |
| `IMAGE_ASSETS_LABEL_LEVEL` | `1` | which folder is the label: `1` the first level, `-1` the folder of the file |
| `IMAGE_ASSETS_MERGE_LABELS` | `off` | `on`: treat labels that differ only in case, spaces or Unicode form as one |
| `IMAGE_ASSETS_SPLIT_FOLDERS` | `auto` | whether folders `train`, `val`, `test` are splits: `auto`, `on` or `off` |
| `IMAGE_ASSETS_LABELS` | none (folder names) | labels by path: CSV, Parquet, Delta, or an annotation program's export |
| `IMAGE_ASSETS_PATH_COLUMN` | the usual names, such as `path` or `file` | the column of that table with the paths |
| `IMAGE_ASSETS_LABEL_COLUMN` | the usual names, such as `label` and `class` | the column with the labels; or `none` |
| `IMAGE_ASSETS_DUPLICATES` | `near` | images that share a split: `near` (edited, too), `exact` (equal files), `off` |
| `IMAGE_ASSETS_GROUP_BY` | none | a column of the label table; images with the same value share a split |
| `IMAGE_ASSETS_SAMPLES_PER_LABEL` | `8` | images of each label in `image_samples` |
| `IMAGE_ASSETS_SAMPLES_PER_FOLDER` | no limit | maximum per folder |
| `IMAGE_ASSETS_WORKER_MEGABYTES` | `4096` | memory limit of the process for runs of sensors; `0`: no such process |
| `IMAGE_ASSETS_SETTLE_SECONDS` | `2` | how long a file must stay unchanged before it is imported |
| `IMAGE_ASSETS_LISTING_SECONDS` | `4`; on S3 `10` | minimum seconds between two listings of the landing folder |
| `IMAGE_ASSETS_EVENTS` | none | the URL of the SQS queue that receives the events of a landing folder on S3 |
| `IMAGE_ASSETS_CONTENT_LIMIT_MB` | `512` | tables store larger files without their content |
| `IMAGE_ASSETS_PIXEL_LIMIT` | `50` | images with more million pixels are downscaled while they are decoded |
| `IMAGE_ASSETS_PAGE` | `non_blank` | the page or frame that is used: the first that is not blank, or `first` |
| `IMAGE_ASSETS_SIZE_LIMIT_MB` | `16384` | larger files are quarantined |
| `IMAGE_ASSETS_FETCH_ALLOW` | none | what else `fetch_images` may read: `private_addresses`, `local_files` |
| `IMAGE_ASSETS_ALERT_RULES` | `alert_rules.yaml` in the home, if it exists | the file with the alert rules |
| `IMAGE_ASSETS_ALERT_<NAME>` | none | the address of the alert receiver `<name>`, in apprise's notation |
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | the machine's role | the account for S3 |
| `AWS_REGION`, `AWS_DEFAULT_REGION` | none | the region of S3; the first one that is set counts |
| `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_SQS` | Amazon's | the address of other S3-compatible storage, and of its queue |
| `AWS_ALLOW_HTTP` | `false` | `true` accepts an `AWS_ENDPOINT_URL` that is not encrypted |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import dagster as dg

from resources.alerts import ADDRESS_PREFIX, AlertSender, RulesFile
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.row_groups import MEBIBYTE, Color, Content, Page
from resources.delta.spark_session import ExecutorName, gpu_settings, spark_session
from resources.devices import DeviceChoice, InferenceDevice
from resources.duplicates import DUPLICATES, DuplicateRules, Duplicates
from resources.files.file_system import is_url
from resources.files.image_folder import ImageFolder, SplitFolders
from resources.files.s3 import StorageEvents
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_packages import ModelPackages
from resources.mlflow.model_registry import ModelRegistry
from resources.samples import SampleSize
from resources.setting_values import (
    DATABASE_VARIABLE,
    HTTP,
    RULES_VARIABLE,
    is_on_postgres,
    local_url,
    receiver_names,
    stored_landing,
    to_caches,
    to_choice,
    to_count,
    to_fetch_allow,
    to_folder,
    to_freshness,
    to_home,
    to_landing,
    to_level,
    to_limit,
    to_link_roots,
    to_litter,
    to_master,
    to_mlflow_url,
    to_number,
    to_owners,
    to_patterns,
    to_queue,
    to_s3_settings,
    to_spark_gpus,
    to_storage,
    to_table_location,
    to_tags,
    to_url,
)
from resources.training import BackboneWeights, TrainingProcesses
from resources.weight_files import SOURCES

MAX_CONTENT_MB = 1900  # Delta and Arrow cannot store 2 GiB in one row


@dataclass(frozen=True)
class Settings:
    """The validated settings."""

    home: Path
    storage: Path | str  # a string if it is a URL
    caches: Path
    landing: Path | str
    tracking_uri: str
    spark_master: str
    executor: ExecutorName
    processes: int
    backbone: str
    device: DeviceChoice
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
    litter: tuple[str, ...]
    link_roots: tuple[str, ...]
    label_level: int
    merge_labels: bool
    split_folders: SplitFolders
    labels: str
    path_column: str
    label_column: str
    duplicates: Duplicates
    group_by: str
    samples_per_label: int
    samples_per_folder: int | None
    settle_seconds: float
    listing_seconds: int
    worker_megabytes: float
    events: str
    content_limit_megabytes: float
    size_limit_megabytes: float
    pixel_limit_millions: float
    page: Page
    cache_content: Content
    cache_color: Color
    cache_megabytes: float
    fetch_allow: tuple[str, ...]
    alert_rules: Path | None  # None: the file in the home, if it exists
    alert_receivers: tuple[str, ...]  # names only: the addresses contain passwords
    s3_settings: dict[str, str]  # Spark settings for S3; empty if nothing is on S3
    dagster_on_postgres: bool  # Dagster reads the address itself, because it contains a password

    @property
    def dagster_home(self) -> Path:
        """Dagster's own folder: runs, events and schedules."""
        return self.home / "dagster"

    @property
    def artifacts(self) -> str:
        """The URL of the folder for MLflow's artifacts."""
        artifacts = f"{self.storage}/mlartifacts"
        return artifacts if is_url(artifacts) else Path(artifacts).as_uri()


def read_settings(variables: Mapping[str, str] = os.environ) -> Settings:
    """Reads and validates all settings; a ValueError names the invalid variable and what it should be."""
    home = to_home(variables.get("IMAGE_ASSETS_HOME") or ".image_assets")
    landing = variables.get("IMAGE_ASSETS_LANDING") or stored_landing(home) or home / "landing"
    storage = variables.get("IMAGE_ASSETS_STORAGE") or home
    backbone = variables.get("IMAGE_ASSETS_BACKBONE") or "auto"
    if backbone not in SOURCES:
        backbone = str(to_folder(backbone))
    return Settings(
        home=home,
        storage=to_storage(storage),
        caches=to_caches(variables.get("IMAGE_ASSETS_CACHES") or home / "caches"),
        landing=to_landing(landing),
        tracking_uri=to_url(variables, "MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
        spark_master=to_master(variables),
        executor=to_choice(variables, "IMAGE_ASSETS_EXECUTOR", get_args(ExecutorName)),
        processes=to_count(variables, "IMAGE_ASSETS_PROCESSES", 2),
        backbone=backbone,
        device=to_choice(variables, "IMAGE_ASSETS_DEVICE", get_args(DeviceChoice)),
        gpu_run_tags=to_tags(variables.get("IMAGE_ASSETS_GPU_RUN_TAGS")),
        spark_gpus=to_spark_gpus(variables),
        tasks_per_gpu=to_count(variables, "IMAGE_ASSETS_SPARK_TASKS_PER_GPU", 4),
        dagster_url=to_url(variables, "IMAGE_ASSETS_DAGSTER_URL") or local_url("DAGSTER_PORT", 3000, variables),
        mlflow_url=to_mlflow_url(variables),
        owners=to_owners(variables.get("IMAGE_ASSETS_OWNERS")),
        freshness=to_freshness(variables),
        gallery_url=to_url(variables, "IMAGE_ASSETS_GALLERY_URL") or local_url("GALLERY_PORT", 4000, variables),
        include=to_patterns(variables.get("IMAGE_ASSETS_INCLUDE")),
        exclude=to_patterns(variables.get("IMAGE_ASSETS_EXCLUDE")),
        litter=to_litter(variables.get("IMAGE_ASSETS_LITTER")),
        link_roots=to_link_roots(variables.get("IMAGE_ASSETS_LINK_ROOTS")),
        label_level=to_level(variables),
        merge_labels=to_choice(variables, "IMAGE_ASSETS_MERGE_LABELS", ("off", "on")) == "on",
        split_folders=to_choice(variables, "IMAGE_ASSETS_SPLIT_FOLDERS", get_args(SplitFolders)),
        labels=to_table_location(variables, "IMAGE_ASSETS_LABELS"),
        path_column=(variables.get("IMAGE_ASSETS_PATH_COLUMN") or "").strip(),
        label_column=(variables.get("IMAGE_ASSETS_LABEL_COLUMN") or "").strip(),
        duplicates=to_choice(variables, "IMAGE_ASSETS_DUPLICATES", DUPLICATES),
        group_by=(variables.get("IMAGE_ASSETS_GROUP_BY") or "").strip(),
        samples_per_label=to_count(variables, "IMAGE_ASSETS_SAMPLES_PER_LABEL", 8),
        samples_per_folder=to_limit(variables, "IMAGE_ASSETS_SAMPLES_PER_FOLDER"),
        settle_seconds=to_number(variables, "IMAGE_ASSETS_SETTLE_SECONDS", 2, minimum=0),
        listing_seconds=to_count(variables, "IMAGE_ASSETS_LISTING_SECONDS", 10 if is_url(str(landing)) else 4),
        worker_megabytes=to_number(variables, "IMAGE_ASSETS_WORKER_MEGABYTES", 4096, minimum=0),
        events=to_queue(variables, str(landing)),
        content_limit_megabytes=to_number(variables, "IMAGE_ASSETS_CONTENT_LIMIT_MB", 512, maximum=MAX_CONTENT_MB),
        size_limit_megabytes=to_number(variables, "IMAGE_ASSETS_SIZE_LIMIT_MB", 16384),
        pixel_limit_millions=to_number(variables, "IMAGE_ASSETS_PIXEL_LIMIT", 50),
        page=to_choice(variables, "IMAGE_ASSETS_PAGE", get_args(Page)),
        cache_content=to_choice(variables, "IMAGE_ASSETS_CACHE_CONTENT", get_args(Content)),
        cache_color=to_choice(variables, "IMAGE_ASSETS_CACHE_COLOR", get_args(Color)),
        cache_megabytes=to_number(variables, "IMAGE_ASSETS_CACHE_MEGABYTES", 16384),
        fetch_allow=to_fetch_allow(variables),
        alert_rules=to_folder(variables[RULES_VARIABLE]) if variables.get(RULES_VARIABLE) else None,
        alert_receivers=receiver_names(variables),
        s3_settings=to_s3_settings(str(storage), str(landing), variables),
        dagster_on_postgres=is_on_postgres(variables.get(DATABASE_VARIABLE)),
    )


def image_folder(settings: Settings) -> ImageFolder:
    """The landing folder, with its filters and limits."""
    return ImageFolder(
        root=str(settings.landing),
        include=list(settings.include),
        exclude=list(settings.exclude),
        litter=list(settings.litter),
        link_roots=list(settings.link_roots),
        label_level=settings.label_level,
        merge_labels=settings.merge_labels,
        split_folders=settings.split_folders,
        settle_seconds=settings.settle_seconds,
        content_limit_bytes=int(settings.content_limit_megabytes * MEBIBYTE),
        size_limit_bytes=int(settings.size_limit_megabytes * MEBIBYTE),
        pixel_limit=int(settings.pixel_limit_millions * 1e6),
        page=settings.page,
    )


def label_table(settings: Settings) -> ExternalTable:
    """The table that provides labels, or none."""
    return ExternalTable(source=settings.labels, path_column=settings.path_column, label_column=settings.label_column)


def petastorm_caches(
    settings: Settings, side_pixels: int | None, unnamed_side_pixels: int | None = None
) -> PetastormCaches:
    """The training caches, with their format and maximum size."""
    return PetastormCaches(
        root=str(settings.caches),
        content=settings.cache_content,
        color=settings.cache_color,
        page=settings.page,
        pixel_limit=int(settings.pixel_limit_millions * 1e6),
        side_pixels=side_pixels,
        unnamed_side_pixels=unnamed_side_pixels,
        keep_megabytes=settings.cache_megabytes,
    )


def alert_sender(settings: Settings) -> AlertSender:
    """The alert receivers. Dagster reads their addresses when a run needs them and shows only the variables' names."""
    variables = {name: f"{ADDRESS_PREFIX}{name.upper()}" for name in settings.alert_receivers}
    return AlertSender(addresses={name: dg.EnvVar(variable) for name, variable in variables.items()})


def rules_file(settings: Settings) -> RulesFile:
    """The file of the alert rules."""
    path = settings.alert_rules or settings.home / "alert_rules.yaml"
    return RulesFile(path=str(path), required=settings.alert_rules is not None)


def create_resources(
    settings: Settings, *, side_pixels: int | None = None, unnamed_side_pixels: int | None = None
) -> dict[str, dg.ConfigurableResource]:
    """All resources; their data is in the home unless the settings say otherwise."""
    spark = spark_session(
        settings.spark_master,
        scratch=str(settings.home / "spark"),
        more=settings.s3_settings | gpu_settings(settings.spark_gpus, settings.tasks_per_gpu),
        executor=settings.executor,
    )
    return {
        "pyspark": spark,
        "delta_tables": DeltaTables(
            pyspark=spark,
            root=f"{settings.storage}/tables",
            home=str(settings.home),
        ),
        "image_folder": image_folder(settings),
        "events": StorageEvents(queue=settings.events),
        "label_table": label_table(settings),
        "duplicate_rules": DuplicateRules(duplicates=settings.duplicates, group_by=settings.group_by),
        "sample_size": SampleSize(per_label=settings.samples_per_label, per_folder=settings.samples_per_folder),
        "petastorm_caches": petastorm_caches(settings, side_pixels, unnamed_side_pixels),
        "training_processes": TrainingProcesses(processes=settings.processes),
        "backbone": BackboneWeights(source=settings.backbone),
        "inference_device": InferenceDevice(choice=settings.device, run_tags=settings.gpu_run_tags),
        "mlflow_tracking": MlflowTracking(
            tracking_uri=settings.tracking_uri,
            # A tracking server manages artifacts and their permissions itself.
            artifact_url=None if settings.tracking_uri.startswith(HTTP) else settings.artifacts,
            ui_url=settings.mlflow_url,
            dagster_url=settings.dagster_url,
            gallery_url=settings.gallery_url,
        ),
        "model_registry": ModelRegistry(tracking_uri=settings.tracking_uri),
        "model_packages": ModelPackages(root=str(settings.home / "packages")),
        "alert_sender": alert_sender(settings),
        "rules_file": rules_file(settings),
    }
