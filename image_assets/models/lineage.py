"""Where a model version comes from, as its MLflow run and its tags record it."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PositiveInt, TypeAdapter, ValidationError

from image_assets.images.charts import picture_markdown
from image_assets.images.pixels import DEFAULT, PageChoice, Reading
from image_assets.models.backbones import backbone_of
from image_assets.models.calibration import Thresholds
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.training_plan import TrainingResult
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_FILES,
    IMAGE_SPLITS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.delta_log import why_unreadable
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelVersion

if TYPE_CHECKING:
    from image_assets.models.training import Task

TABLE_VERSIONS = "table_versions"
CACHE_SETTINGS = "cache_settings"  # the tag that records how the training caches stored images
MAX_LABELS_TAG_LENGTH = 100_000  # MLflow refuses a version with a longer tag
THRESHOLDS = "thresholds"  # the tag of a version that abstains: `Thresholds` as JSON

CURVES_FILE = "learning_curves.png"
HISTORY_FILE = "history.json"  # every epoch's metrics, an artifact of the MLflow run
INPUTS = (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_EMBEDDINGS, IMAGE_SPLITS, IMAGE_FILES)
EMBEDDING_BACKBONE = "embedding_backbone"  # the tag of versions whose head takes embeddings of image_embeddings
LIBRARIES = ("dagster", "pyspark", "delta-spark", "petastorm", "horovod")
LIBRARIES += tuple(package for framework in FRAMEWORKS.values() for package in framework.packages)
LIBRARIES += ("mlflow", "numpy", "pandas", "pyarrow", "pillow", "simplejpeg", "cykooz-resizer")


def table_versions(version: ModelVersion) -> dict[str, int]:
    """The Delta version of each table at the training; a ValueError if the tag is missing or malformed."""
    tag = version.tags.get(TABLE_VERSIONS)
    try:
        versions = json.loads(tag or "")
    except json.JSONDecodeError:
        versions = None
    if not versions or not isinstance(versions, dict) or not all(type(at) is int for at in versions.values()):
        raise ValueError(
            f"{version.uri}: the tag {TABLE_VERSIONS} is {tag!r}, expected JSON of tables and Delta versions, "
            'such as {"image_splits": 12}'
        )
    return versions


def thresholds_of(version: ModelVersion) -> list[float | None] | None:
    """For each label, the probability below which a version abstains; None if it never does, or the tag is invalid."""
    try:
        thresholds = TypeAdapter(Thresholds).validate_json(version.tags.get(THRESHOLDS, "")).by_label
    except ValidationError:
        return None
    return thresholds if len(thresholds) == len(version.labels) else None


@dataclass(frozen=True)
class CacheSettings:
    """The part of the tag `cache_settings` that says how the version gets its images."""

    page: PageChoice = DEFAULT.page
    pixel_limit: PositiveInt = DEFAULT.max_pixels
    side_pixels: PositiveInt | None = None  # versions of earlier releases do not have it


def cache_settings(version: ModelVersion) -> CacheSettings:
    """What the version's tag `cache_settings` says; a ValueError if it is invalid."""
    tag = version.tags.get(CACHE_SETTINGS, "{}")
    try:
        return TypeAdapter(CacheSettings).validate_json(tag)
    except ValidationError as error:
        raise ValueError(f"{version.uri}: the tag {CACHE_SETTINGS} is {tag!r}, which is invalid: {error}") from error


def reading_of(version: ModelVersion) -> Reading:
    """How the version reads images: like those it was trained on, or by default if its tag is missing or invalid."""
    try:
        settings = cache_settings(version)
    except ValueError:
        return DEFAULT
    return Reading(settings.page, settings.pixel_limit)


def image_side(version: ModelVersion) -> int:
    """The width and height in pixels of the images that a version takes, from its tags.

    Raises:
        ValueError: The tag `cache_settings` or the name of the backbone is invalid.
        FileNotFoundError, ImportError: The backbone's file or package, which would tell, is missing.
    """
    return cache_settings(version).side_pixels or backbone_of(version.tags, "backbone_name").side_pixels


def unreadable_versions(delta_tables: DeltaTables, versions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Table versions that can no longer be read, and why."""
    by_name = {table.name: table for table in TABLES}
    found = {}
    for name, at in sorted(versions):
        if name in by_name and (why := why_unreadable(delta_tables.uri(by_name[name]), at)):
            found[name, at] = f"{name} at Delta version {at} cannot be read: {why}"
    return found


def code_version() -> str:
    """The commit of this checkout, with `-dirty` if files were changed; the package's version if there is none."""
    try:
        # Fails if this file is installed inside of another project's checkout.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return version("image-assets")


def _git(*command: str) -> str:
    git = ["git", "-C", str(Path(__file__).parent), *command]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def logged_pictures(
    tracking: MlflowTracking, mlflow_run_id: str, files: Mapping[str, str], title: str
) -> dict[str, dg.MetadataValue]:
    """Metadata with pictures that were logged to an MLflow run, by name.

    A missing picture is not an error: earlier releases drew fewer, someone may have deleted it, and a version works
    without.
    """
    from mlflow.exceptions import MlflowException

    pictures = {}
    for name, file in files.items():
        with suppress(MlflowException, OSError):
            pictures[name] = tracking.read(mlflow_run_id, file)
    return {name: dg.MetadataValue.md(picture_markdown(picture, title)) for name, picture in pictures.items()}


@dataclass(frozen=True)
class Origin:
    """What a training starts from, besides its settings."""

    table_versions: dict[str, int]
    code_version: str
    dagster_run_id: str
    dagster_asset: str


def to_origin(delta_tables: DeltaTables, dagster_run_id: str, dagster_asset: str) -> Origin:
    """The current versions of the tables, the code, and the run that trains."""
    versions = {table.name: delta_tables.version(table) for table in INPUTS if delta_tables.holds(table)}
    return Origin(versions, code_version(), dagster_run_id, dagster_asset)


def log_task(task: "Task", origin: Origin, delta_tables: DeltaTables) -> None:
    """Log the task, the code and the tables with their Delta versions to the open MLflow run."""
    import mlflow
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    plan = asdict(task.plan)
    schedules = {f"{phase}_{key}": value for phase in ("head", "fine_tuning") for key, value in plan.pop(phase).items()}
    plan.pop("backbone")
    caches = {"training_cache": task.training.name, "validation_cache": task.validation.name}
    images = {"training_images": task.training.rows, "validation_images": task.validation.rows}
    mlflow.log_params({**plan, **schedules, **caches, **images, "processes": task.processes})
    mlflow.log_dict({"labels": task.labels}, "labels.json")
    mlflow.log_dict({name: version(name) for name in LIBRARIES}, "library_versions.json")
    mlflow.log_dict(hardware(), "hardware.json")
    mlflow.set_tags({**to_origin_tags(origin), "labels": labels_tag(task.labels), "framework": task.framework})
    for table in (table for table in INPUTS if table.name in origin.table_versions):
        delta_version = origin.table_versions[table.name]
        source = DeltaDatasetSource(path=delta_tables.uri(table), delta_table_version=delta_version)
        mlflow.log_input(MetaDataset(source, name=f"{table.name}@v{delta_version}"), context="training")


def log_outcome(trained: TrainingResult, curves: bytes) -> None:
    """Log the metrics and learning curves of a training to the open MLflow run."""
    import mlflow
    from PIL import Image

    figures = ("seconds", "seconds_to_first_step", "embedded_images", "images_per_second", "best_epoch", "steps")
    mlflow.log_metrics({f"training_{name}": float(getattr(trained, name)) for name in figures})
    # Those of the version; `validation_accuracy` is the curve of the head, before any fine-tuning.
    mlflow.log_metrics({"best_validation_accuracy": trained.validation_accuracy, **trained.abstention})
    mlflow.log_dict({"epochs": list(trained.history)}, HISTORY_FILE)
    mlflow.set_tags({"backbone": trained.backbone, "precision": trained.precision})
    mlflow.log_image(Image.open(BytesIO(curves)), CURVES_FILE)


def to_tags(task: "Task", trained: TrainingResult, origin: Origin, settings: dict[str, Any]) -> dict[str, str]:
    """The tags of a model version, enough to train it again."""
    return {
        **to_origin_tags(origin),
        "framework": task.framework,
        "labels": labels_tag(task.labels),
        "backbone": trained.backbone,
        "backbone_identity": task.backbone,
        "backbone_name": task.plan.backbone_name,
        "training_settings": json.dumps(settings),
        CACHE_SETTINGS: json.dumps(
            {
                "content": task.plan.content,
                "color": task.plan.color,
                "page": task.plan.page,
                "pixel_limit": task.plan.pixel_limit,
                "side_pixels": task.plan.architecture.side_pixels,
            }
        ),
        "caches": json.dumps({"training": task.training.name, "validation": task.validation.name}),
        "training_images": str(task.training.rows),
        "refit": str(task.plan.refit).lower(),
        **({"refit_images": str(task.training.rows + task.validation.rows)} if task.plan.refit else {}),
        "processes": str(task.processes),
        "weights_digest": trained.weights_digest,
        **({THRESHOLDS: json.dumps(asdict(trained.thresholds))} if trained.thresholds else {}),
        **({EMBEDDING_BACKBONE: trained.embedding_backbone} if trained.embedding_backbone else {}),
    }


def labels_tag(labels: Sequence[str]) -> str:
    """The labels as the tag of a version; a ValueError if they are too long for it."""
    tag = json.dumps(labels, ensure_ascii=False)  # escaped, a letter of some scripts would be six
    if len(tag) > MAX_LABELS_TAG_LENGTH:
        raise ValueError(
            f"the names of the {len(labels):,} labels need {len(tag):,} characters in MLflow, which stores "
            f"{MAX_LABELS_TAG_LENGTH:,} with a version: shorten them, or use fewer"
        )
    return tag


def to_origin_tags(origin: Origin) -> dict[str, str]:
    """The origin as tags."""
    return {**asdict(origin), "table_versions": json.dumps(origin.table_versions)}


def hardware() -> dict[str, str | int]:
    """The driver's machine, on which the ranks run too in local mode."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"machine": platform.machine(), "cores": os.cpu_count() or 0, "memory_bytes": memory, **processor()}


def processor() -> dict[str, str]:
    """The processor's name, if the system provides it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0]} if names else {}
