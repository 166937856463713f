"""The data's path, from image files to predictions.

    a table of addresses ─▶ fetched_images ─▶ landing folder
    landing folder ──▶ image_files (ledger)            data
                 └──▶ raw_images ─▶ featured_images ─▶ grayscale_images
    a label table ─▶ given_labels ──────▶┤   │
            label_corrections ──────────▶┤   └─▶ image_splits ─▶ training_cache · validation_cache
                                         └─▶ image_samples ◀┘            │
                                                         tensorflow_model · torch_model        models
                                                                         │  (registry versions, stages)
                                                                  model_evaluations ─▶ stage_history
                 featured_images ──────────────────▶ image_predictions ─▶ current_predictions      predictions
                                                                        │         └─▶ prediction_alerts ─▶ mail, chat
                                                                        └─▶ version_agreements · prediction_drift

Each asset is a file of the folder that is its group; each table's columns are in `schemas.py`.
"""
