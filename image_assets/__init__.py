"""The path of the data, from image files to predictions.

    a table of addresses ─▶ fetched_images ─▶ landing folder
    landing folder ──▶ image_files (ledger)            data
                 └──▶ raw_images ─▶ featured_images ─▶ grayscale_images · image_embeddings
    a label table ─▶ given_labels ──────▶┤   │
            label_corrections ──────────▶┤   └─▶ image_splits ─▶ training_cache · validation_cache
                                         └─▶ image_samples ◀┘            │
                                                         tensorflow_model · torch_model        models
                                                                         │  (registry versions, stages)
                       backbone_comparisons (by its own job)      model_evaluations ─▶ stage_history
                 featured_images ──────────────────▶ image_predictions ─▶ current_predictions      predictions
                                                                        │         └─▶ prediction_alerts ─▶ mail, chat
                                                                        └─▶ version_agreements · prediction_drift

Each asset is in the file of its name, except the two models, which are rows of `models/frameworks.py` trained by
`models/trained_models.py`. The op of `raw_images` also writes `image_files` and `replayed_files`. The first version is
promoted by `model_evaluations`, every later one by a person (`jobs/promote_model`). Each folder of assets is a group in
Dagster. Where to look for what:

schemas.py      every table: columns, keys and meaning
images/         bytes in, pixels out: formats and decoding (pixels), gray copies (grayscale), limits for hostile and
                large files, hashes, near duplicates, charts; knows neither tables nor Dagster
data/           files to tables to caches: the ledger (image_files), reading (ingestion), labels, splits,
                checks, and the audit of all tables
models/         embeddings, caches to trained models, their registered versions, evaluations and stages
predictions/    versions and images to prediction tables, drift and alerts (alert_rules: which; alert_sending: how)
jobs/           what people and sensors launch, and how runs repeat
"""
