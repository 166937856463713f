"""For each job a run config to start from: its description shows it, and opens it in the Launchpad."""

from urllib.parse import quote

EXAMPLES = {
    "whole_path": """\
ops:
  image_splits:
    config: # an image that has a split keeps it
      training: 0.7
      validation: 0.15
      test: 0.15
  tensorflow_model:
    config:
      epochs: 30
  torch_model:
    config:
      epochs: 30
""",
    "ingest_images": """\
execution:
  config:
    trigger: available_now # or 30 seconds: look that often, until the run is terminated
ops:
  prediction_drift:
    config:
      threshold: 0.6 # an answer of a lower probability is unsure
""",
    "replay_quarantine": """\
ops:
  raw_images:
    config:
      replay_reason: undecodable # "*" for every reason
      replay_path: roses/* # below the landing folder; leave it out for all files
""",
    "train_models": """\
ops:
  tensorflow_model:
    config:
      trainable: top_blocks # or head, the default; or all
      top_blocks: 8
      augmentation: true
      fine_tuning_epochs: 8
  torch_model:
    config:
      trainable: head
      epochs: 30
""",
    "predict_images": """\
execution:
  config:
    trigger: available_now # or 30 seconds: look that often, until the run is terminated
ops:
  image_predictions:
    config:
      shadows: true # versions in Staging predict as well
""",
    "send_alerts": """\
ops:
  prediction_alerts:
    config:
      arrived: [] # message_ids of unclear messages that did arrive
      not_arrived: [] # of those that did not: they are sent again; "*" for all others
""",
    "promote_model": """\
ops:
  promote:
    config:
      version: 2
      stage: Production # or Staging, Archived, None
      person: your name
      reason: better on the test split
      tolerance: 0.01 # by how much its accuracy may be lower than the serving version's
""",
    "reproduce_model": """\
ops:
  reproduce:
    config:
      version: 2
""",
    "package_model": """\
ops:
  package:
    config:
      version: 2
      folder: /srv/flowers_v2 # leave it out for packages/ in the home
""",
    "optimize_tables": """\
tables: [raw_images, featured_images] # leave it out for all of them
dry_run: true # only say what would be done
""",
    "vacuum_tables": """\
tables: [raw_images, featured_images] # leave it out for all of them
dry_run: true # only say what would go
retention_hours: 168
""",
    "fetch_images": """\
ops:
  fetched_images:
    config:
      table: /srv/photographs.csv # a column url, and label and name where they are known
      at_once: 8
""",
    "check_assets": """\
{} # it takes nothing
""",
}


def with_example(job: str, what: str) -> str:
    """The description of a job: what it does, and its example, as Dagster's UI shows them."""
    example = EXAMPLES[job]
    return f"{what}\n\n```yaml\n{example}```\n\n[Open this in the Launchpad]({launchpad_url(job)})"


def launchpad_url(job: str) -> str:
    """Where Dagster's UI opens the Launchpad of a job with its example, from any page of the job."""
    return f"/locations/definitions/jobs/{job}/playground/setup?config={quote(EXAMPLES[job])}"
