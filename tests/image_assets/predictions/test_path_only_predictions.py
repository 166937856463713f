"""What a version says of images whose rows hold no content."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from pyspark.sql import functions as F

from image_assets.predictions.image_predictions import score
from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import ExecutorName
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.registered_versions import registered, saved_model
from tests.support.tables import with_executor

# Answers by the mean value of the pixels; raises on a path.
BRIGHTNESS = """
    from io import BytesIO

    import numpy as np
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel
    from PIL import Image


    class Brightness(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            rows = []
            for content, path in zip(model_input["content"], model_input["path"]):
                if path.endswith({raises!r}):
                    raise RuntimeError("what is this?")
                if content is None:
                    rows.append((None, None, None))
                    continue
                bright = float(np.asarray(Image.open(BytesIO(content)).convert("L")).mean() / 255)
                rows.append(("bright" if bright > 0.5 else "dark", max(bright, 1 - bright), [bright, 1 - bright]))
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Brightness())
"""


def brightness(registry: ModelRegistry, folder: Path, raises: str) -> ModelVersion:
    """A version that raises on paths which end so."""
    model = saved_model(BRIGHTNESS.format(raises=raises), folder, f"version{len(registry.versions())}")
    tags = {"framework": "torch", "labels": json.dumps(["bright", "dark"])}
    return registered(model, registry, tags, (folder / "artifacts").as_uri())


def predictions_of(tables: DeltaTables, version: ModelVersion) -> dict[str, tuple[float | None, str | None]]:
    """Of each file its first probability, and the fault."""
    of_version = pc.field("model_version") == version.version
    rows = tables.read(IMAGE_PREDICTIONS, ["path", "probabilities", "fault"], of_version).to_pylist()
    return {row["path"].split("/")[-1]: ((row["probabilities"] or [None])[0], row["fault"]) for row in rows}


@pytest.mark.spark
@pytest.mark.parametrize("executor", ["local", "spark"])
def test_images_without_content_are_answered_from_their_path_also_carefully(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, executor: ExecutorName
) -> None:
    ingested_tables = with_executor(ingested_tables, executor)
    whole, path_only, careful = (brightness(registry, tmp_path, raises) for raises in ("-", "-", "ball 0.png"))
    assert score(ingested_tables, registry, whole, "cpu") is None
    rows = ingested_tables.dataframe(FEATURED_IMAGES).localCheckpoint()
    changed = F.when(F.col("path").endswith("ball 2.png"), F.lit(5)).otherwise(F.col("length"))
    ingested_tables.overwrite(
        rows.withColumns({"content": F.lit(None).cast("binary"), "length": changed}), FEATURED_IMAGES
    )
    assert score(ingested_tables, registry, path_only, "cpu") is None
    failed = score(ingested_tables, registry, careful, "cpu")
    assert (failed is None) == (executor == "local"), "only Spark needs a second attempt"
    of_whole = predictions_of(ingested_tables, whole)
    for version, unanswered in ((path_only, {"ball 2.png"}), (careful, {"ball 0.png", "ball 2.png"})):
        answers = predictions_of(ingested_tables, version)
        assert len(answers) == 16
        assert {name for name, (_, fault) in answers.items() if fault} == unanswered
        for name in answers.keys() - unanswered:
            assert np.isclose(answers[name][0], of_whole[name][0], atol=1e-2), name
