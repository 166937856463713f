"""Pictures of a version that an earlier run made: shown again by a run that makes none."""

from collections.abc import Mapping

import dagster as dg

from image_assets.pictures import to_markdown
from resources.mlflow_tracking import MlflowTracking


def kept_pictures(
    tracking: MlflowTracking, mlflow_run_id: str, files: Mapping[str, str], title: str
) -> dict[str, dg.MetadataValue]:
    """Metadata with pictures that were logged to an MLflow run, by name; none where MLflow does not have all of them.

    That is no failure: somebody may have deleted them, and a version serves without.
    """
    from mlflow.exceptions import MlflowException

    try:
        pictures = {name: tracking.read(mlflow_run_id, file) for name, file in files.items()}
    except (MlflowException, OSError):
        return {}
    return {name: dg.MetadataValue.md(to_markdown(picture, title)) for name, picture in pictures.items()}
