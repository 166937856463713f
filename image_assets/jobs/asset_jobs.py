"""The jobs that you launch: named selections of the assets, and the list of all jobs."""

import dagster as dg

from image_assets.data.data_checks import groups_in_one_split, labels_in_every_split
from image_assets.jobs.continuous import (
    alerts_to_send,
    continuous_executor,
    corrections_to_apply,
    files_to_ingest,
    images_to_predict,
    label_table_to_read,
)
from image_assets.jobs.evaluate_version import evaluate_version
from image_assets.jobs.export_dataset import export_dataset
from image_assets.jobs.launchpad_examples import with_example
from image_assets.jobs.optimize_tables import optimize_tables
from image_assets.jobs.package_model import package_model
from image_assets.jobs.promote_model import promote_model
from image_assets.jobs.repair_tables import repair_tables
from image_assets.jobs.reproduce_model import reproduce_model
from image_assets.jobs.request_promotion import request_promotion, review_promotion
from image_assets.jobs.unpack_parquet import unpack_parquet
from image_assets.jobs.vacuum_tables import vacuum_tables
from image_assets.predictions.prediction_checks import every_alert_sent
from resources.delta.unchanged import RECOMPUTE

# Only its own job downloads images: you name the table with their addresses.
FETCHED = dg.AssetSelection.assets("fetched_images")
CACHES = dg.AssetSelection.assets("training_cache", "validation_cache")
# So are comparisons of backbones: they take longer than a training.
COMPARED = dg.AssetSelection.assets("backbone_comparisons")
MODELS = dg.AssetSelection.groups("models") - COMPARED.without_checks()
PREDICTIONS = dg.AssetSelection.groups("predictions")
BEFORE_MODELS = dg.AssetSelection.groups("data") - FETCHED
WHOLE_PATH = dg.AssetSelection.all() - (FETCHED | COMPARED).without_checks()

# These checks block training. They must not block the tables.
BEFORE_TRAINING = dg.AssetSelection.checks(groups_in_one_split, labels_in_every_split)
EMBEDDINGS = dg.AssetSelection.assets("image_embeddings")
FOLLOWING = ((BEFORE_MODELS - CACHES) | EMBEDDINGS | PREDICTIONS) - BEFORE_TRAINING

ingest_images = dg.define_asset_job(
    "ingest_images",
    selection=FOLLOWING,
    description=with_example(
        "ingest_images", "Ingest new and changed files into all tables, and predict them with the production model."
    ),
    executor_def=continuous_executor(alerts_to_send, files_to_ingest, label_table_to_read, corrections_to_apply),
)
replay_quarantine = dg.define_asset_job(
    "replay_quarantine",
    selection=FOLLOWING,
    config={"ops": {"raw_images": {"config": {"replay_reason": "*"}}}},
    description=with_example(
        "replay_quarantine", "Retry quarantined files by reason or path; replayed_files has the results."
    ),
)
train_models = dg.define_asset_job(
    "train_models",
    selection=dg.AssetSelection.assets("image_splits") | CACHES | MODELS,
    description=with_example(
        "train_models",
        "Train a model in each framework on the current images, then register and evaluate it if anything changed.",
    ),
)
compare_backbones = dg.define_asset_job(
    "compare_backbones",
    selection=COMPARED,
    description=with_example(
        "compare_backbones", "Train a head on each of several backbones, and rank them; no version is registered."
    ),
)
predict_images = dg.define_asset_job(
    "predict_images",
    selection=PREDICTIONS,
    description=with_example("predict_images", "Predict new images with the production model."),
    executor_def=continuous_executor(alerts_to_send, images_to_predict),
)
send_alerts = dg.define_asset_job(
    "send_alerts",
    selection=dg.AssetSelection.assets("prediction_alerts").without_checks()
    | dg.AssetSelection.checks(every_alert_sent),  # its other checks start Spark
    description=with_example(
        "send_alerts", "Send alerts for predictions that match a rule, and retry alerts that could not be sent."
    ),
)
check_assets = dg.define_asset_job(
    "check_assets",
    selection=dg.AssetSelection.all_asset_checks(),
    tags={RECOMPUTE: "true"},
    description=with_example("check_assets", "Run every asset check without materializing anything."),
)
fetch_images = dg.define_asset_job(
    "fetch_images",
    selection=FETCHED,
    description=with_example(
        "fetch_images", "Download the images whose addresses a table lists into the landing folder."
    ),
)
whole_path = dg.define_asset_job(
    "whole_path",
    selection=WHOLE_PATH,
    description=with_example(
        "whole_path", "Run everything from the landing folder to predictions, as `make demo` does."
    ),
)
JOBS = (
    whole_path,
    fetch_images,
    unpack_parquet,
    ingest_images,
    replay_quarantine,
    train_models,
    compare_backbones,
    predict_images,
    send_alerts,
    promote_model,
    request_promotion,
    review_promotion,
    reproduce_model,
    evaluate_version,
    package_model,
    export_dataset,
    optimize_tables,
    vacuum_tables,
    repair_tables,
    check_assets,
)
