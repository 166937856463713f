"""An example run config for each job, which the job's description shows and opens in the Launchpad."""

from urllib.parse import quote

from image_assets.models.frameworks import FRAMEWORKS

FINE_TUNED, *OTHERS = (framework.asset for framework in FRAMEWORKS.values())
HEADS = {
    asset: f"""\
  {asset}:
    config:
      effort: quick # good and best also train the backbone's top blocks
"""
    for asset in (FINE_TUNED, *OTHERS)
}

EXAMPLES = {
    "whole_path": f"""\
ops:
  image_splits:
    config: # applies to new images; the others keep their split
      training: 0.7
      validation: 0.15
      test: 0.15
{"".join(HEADS.values())}""",
    "ingest_images": """\
execution:
  config:
    trigger: available_now # or 30 seconds: check that often, until you terminate the run
ops:
  raw_images:
    config:
      accept_missing: false # true: many files are missing because they were deleted
  prediction_drift:
    config:
      threshold: 0.6 # a prediction with a lower probability has low confidence
""",
    "replay_quarantine": """\
ops:
  raw_images:
    config:
      replay_reason: undecodable # "*" for every reason
      replay_path: roses/* # relative to the landing folder; omit for all files
""",
    "train_models": f"""\
ops:
  {FINE_TUNED}:
    config:
      effort: good # or quick, the default; or best
{"".join(HEADS[asset] for asset in OTHERS)}""",
    "compare_backbones": f"""\
ops:
  backbone_comparisons:
    config:
      backbones: [] # their names; by default those whose weights are at hand
      frameworks: [{", ".join(FRAMEWORKS)}]
""",
    "predict_images": """\
execution:
  config:
    trigger: available_now # or 30 seconds: check that often, until you terminate the run
ops:
  image_predictions:
    config:
      shadows: true # versions in Staging predict, too
""",
    "send_alerts": """\
ops:
  prediction_alerts:
    config:
      arrived: [] # message_ids of unclear messages that arrived
      not_arrived: [] # message_ids to send again; "*" for all other unclear ones
      dropped: [] # receivers, or message_ids, whose waiting alerts are not sent any more
""",
    "promote_model": """\
ops:
  promote:
    config:
      version: 2
      stage: Production # or Staging, Archived, None
      person: your name
      reason: better on the test split
      tolerance: 0.01 # how much lower its accuracy may be than the production model's
""",
    "request_promotion": """\
ops:
  request:
    config:
      version: 2
      stage: Production # or Staging
      person: your name
      reason: better on the test split
""",
    "review_promotion": """\
ops:
  review:
    config:
      version: 2
      decision: approve # or reject
      person: your name
      reason: its mistakes are harmless
""",
    "reproduce_model": """\
ops:
  reproduce:
    config:
      version: 2
""",
    "evaluate_version": """\
ops:
  evaluate_on_images:
    config:
      version: 2 # omit for the serving version
      folder: /srv/my_test_set # with the images of each label in a subfolder
      blur: [1, 2, 4] # optional, like noise, darkness and rotation
      rotation: [15, 45]
""",
    "package_model": """\
ops:
  package:
    config:
      version: 2
      folder: /srv/flowers_v2 # omit for packages/ in the home
""",
    "export_dataset": """\
ops:
  export_images:
    config:
      folder: /srv/flowers # new or empty
      format: image_folder # or coco, hugging_face, label_studio
      filter: split=test&answer=mistakes # as in the gallery's address; omit for all current images
      overwrite: false # true: replace an earlier export in the folder
""",
    "optimize_tables": """\
tables: [raw_images, featured_images] # omit for all tables
dry_run: true # only report what would be compacted
""",
    "vacuum_tables": """\
tables: [raw_images, featured_images] # omit for all tables
dry_run: true # only report what would be removed
retention_hours: 168
""",
    "repair_tables": """\
ops:
  repair_every_table:
    config:
      give_up: [] # lost tables to recreate, empty, such as label_corrections
""",
    "fetch_images": """\
ops:
  fetched_images:
    config:
      table: /srv/photographs.csv # with a column url, and optionally label and name
      at_once: 8
""",
    "unpack_parquet": """\
ops:
  unpack_images:
    config:
      source: /srv/flowers/data/*.parquet
""",
    "check_assets": """\
{} # no settings
""",
}


def with_example(job: str, summary: str) -> str:
    """The job's description in Dagster's UI: what it does, and its example."""
    example = EXAMPLES[job]
    return f"{summary}\n\n```yaml\n{example}```\n\n[Open this in the Launchpad]({launchpad_url(job)})"


def launchpad_url(job: str) -> str:
    """The URL in Dagster's UI that opens the job's Launchpad with its example."""
    return f"/locations/definitions/jobs/{job}/playground/setup?config={quote(EXAMPLES[job])}"
