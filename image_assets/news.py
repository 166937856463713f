"""What another pass of a continuous run would find, told from what the last one said, without a pass."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import dagster as dg

from image_assets.data.folder_changes import folder_changes, without_writing
from image_assets.data.given_labels import label_table_news
from image_assets.data.image_files import read_known
from image_assets.data.relabelling import outdated
from image_assets.materializations import last_said
from image_assets.predictions.alert_states import due
from image_assets.schemas import FEATURED_IMAGES
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder
from resources.model_registry import (
    ModelRegistry,
    RegistryUnavailable,
    UnclearServingVersion,
    in_words,
    serving_version,
    shadows,
)
from resources.outside_table import OutsideTable


class NotNow(RuntimeError):
    """Nobody can look at the moment; later perhaps."""


class Ready(Protocol):
    """The resources of a run, set up."""

    delta_tables: DeltaTables
    image_folder: ImageFolder
    label_table: OutsideTable
    model_registry: ModelRegistry


News = Callable[[dg.DagsterInstance, Ready], str]  # in words; empty when there is none


def news_of_files(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether files landed, changed or left since they were last ingested."""
    try:
        found = folder_changes(ready.image_folder, read_known(ready.delta_tables.thin), part=None)
    except FileNotFoundError as error:
        raise NotNow(str(error)) from error
    changes = without_writing(found, ready.image_folder)
    return str(changes) if changes.digest() else ""


def news_of_labels(instance: dg.DagsterInstance, ready: Ready) -> str:
    """Whether the label table is another one than was last read."""
    try:
        found = label_table_news(instance, ready.label_table)
    except FileNotFoundError as error:
        raise NotNow(str(error)) from error
    return f"the label table: {found}" if found else ""


def news_of_corrections(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether a label was corrected that featured_images does not have yet."""
    found = outdated(ready.delta_tables.thin, FEATURED_IMAGES)
    return f"{len(found)} corrected labels" if found else ""


def news_to_predict(instance: dg.DagsterInstance, ready: Ready) -> str:
    """Whether another version serves, or featured_images has other rows, than when predictions were last made."""
    try:
        versions = ready.model_registry.versions()
        serving, beside = serving_version(versions), in_words(shadows(versions))
    except (RegistryUnavailable, UnclearServingVersion) as error:
        raise NotNow(str(error)) from error
    before = last_said(instance, "image_predictions")
    if before.get("serving_version") != (str(serving.version) if serving else "none"):
        return f"version {serving.version} serves" if serving else "no version serves"
    if before.get("shadow_versions") != beside:
        return f"in Staging: {beside}"
    if (serving, beside) == (None, "none"):
        return ""
    images = ready.delta_tables.last_change(FEATURED_IMAGES)
    return "" if before.get("featured_images_version") == images else "featured_images has new rows"


def news_of_alerts(_: dg.DagsterInstance, ready: Ready) -> str:
    """Whether alerts wait that it is time to send, or to send again."""
    return due(ready.delta_tables.thin, datetime.now(UTC))


def either(first: News, second: News) -> News:
    """The first news, or the second where the first has none."""
    return lambda instance, ready: first(instance, ready) or second(instance, ready)
