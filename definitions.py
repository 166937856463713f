"""Everything Dagster loads: assets, checks, jobs, sensors, resources."""

import warnings
from collections.abc import Sequence

import dagster as dg

from image_assets.data import (
    data_checks,
    featured_images,
    fetched_images,
    folder_checks,
    given_labels,
    grayscale_images,
    image_samples,
    image_splits,
    label_corrections,
    raw_images,
    table_checks,
    training_cache,
    validation_cache,
)
from image_assets.jobs.asset_jobs import JOBS
from image_assets.jobs.continuous import one_pass_executor
from image_assets.models import (
    backbone_comparisons,
    image_embeddings,
    model_evaluations,
    stage_history,
    trained_models,
)
from image_assets.models.backbones import BACKBONES, CURRENT_BACKBONE, IMPLIED_BACKBONE
from image_assets.predictions import (
    current_predictions,
    image_predictions,
    prediction_alerts,
    prediction_checks,
    prediction_drift,
    version_agreements,
)
from image_assets.schemas import TABLES
from resources.home import require_usable
from resources.settings import create_resources, read_settings
from sensors.new_images import new_images_every
from sensors.stage_changes import WATCH_SECONDS, stage_changes_watching
from sensors.storage_events import storage_events
from sensors.waiting_alerts import waiting_alerts

# Each folder is a group. The files are named: loading a whole folder would import what only workers need.
GROUPS = {
    "data": [
        fetched_images,
        raw_images,
        given_labels,
        label_corrections,
        image_samples,
        featured_images,
        grayscale_images,
        image_splits,
        training_cache,
        validation_cache,
    ],
    "models": [image_embeddings, trained_models, model_evaluations, stage_history, backbone_comparisons],
    "predictions": [image_predictions, current_predictions, version_agreements, prediction_drift, prediction_alerts],
}

# The page of the gallery that shows what an asset is about.
GALLERY_PAGES = {
    "image_files": "/?state=quarantined",
    "featured_images": "/",
    "label_corrections": "/?labelled=corrected",
    "image_splits": "/?split=test",
    "image_predictions": "/?answer=mistakes&sort=sure",
    "current_predictions": "/?sort=unsure",
    "version_agreements": "/?apart=versions",
}

settings = read_settings()
require_usable(settings.home)
resources = create_resources(
    settings, side_pixels=CURRENT_BACKBONE.side_pixels, unnamed_side_pixels=BACKBONES[IMPLIED_BACKBONE].side_pixels
)
tables = {table.name: table for table in TABLES}


def with_code_references(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets, each with its file and line. Dagster warns each time that this is beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        found = dg.with_source_code_references(assets)
    return [asset for asset in found if isinstance(asset, dg.AssetsDefinition)]


def with_catalog_metadata(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The asset with its owners, its table's address and columns, and its page in the gallery, as the UI shows it."""
    spec = spec.merge_attributes(owners=settings.owners)
    table = tables.get(spec.key.to_user_string())
    if table is None:
        return spec
    metadata = {"dagster/uri": resources["delta_tables"].uri(table), "dagster/column_schema": table.column_schema}
    if page := GALLERY_PAGES.get(table.name):
        metadata["gallery"] = dg.MetadataValue.url(f"{settings.gallery_url}{page}")
    freshness_policy = settings.freshness if spec.group_name in ("data", "predictions") else None
    return spec.merge_attributes(metadata=metadata).replace_attributes(freshness_policy=freshness_policy)


defs = dg.Definitions(
    assets=with_code_references(
        [
            asset.map_asset_specs(with_catalog_metadata)
            for group, files in GROUPS.items()
            for asset in dg.load_assets_from_modules(files, group_name=group)
            if isinstance(asset, dg.AssetsDefinition)
        ]
    ),
    asset_checks=dg.load_asset_checks_from_modules([data_checks, folder_checks, table_checks, prediction_checks]),
    jobs=JOBS,
    sensors=[
        new_images_every(settings.listing_seconds),
        storage_events(on=bool(settings.events)),
        stage_changes_watching(WATCH_SECONDS),
        waiting_alerts,
    ],
    resources=resources,
    executor=one_pass_executor,  # one Spark session for a run, not one for each step
)
