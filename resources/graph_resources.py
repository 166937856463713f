"""The resources of the graph, built from the settings."""

import dagster as dg

from resources.alert_sender import ADDRESS_PREFIX, AlertSender
from resources.backbone import Backbone
from resources.delta_tables import DeltaTables
from resources.environments import HTTP, Settings
from resources.image_folder import ImageFolder
from resources.inference_device import InferenceDevice
from resources.mlflow_tracking import MlflowTracking
from resources.model_packages import ModelPackages
from resources.model_registry import ModelRegistry
from resources.outside_table import OutsideTable
from resources.petastorm_cache import PetastormCaches
from resources.process_runner import TrainingProcesses
from resources.rules_file import RulesFile
from resources.spark_session import gpu_settings, spark_session
from resources.storage_events import StorageEvents
from resources.thin_tables import ThinTables

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


def local(settings: Settings) -> dict[str, dg.ConfigurableResource]:
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
        "thin_tables": ThinTables(root=tables),
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
