"""How often versions in stage Staging agree with the production version on current images."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.data.new_images_sheet import SHEET_IMAGES
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails
from image_assets.models.version_ids import identify_rows, key_of, of_version
from image_assets.schemas import IMAGE_FILES, IMAGE_PREDICTIONS, VERSION_AGREEMENTS
from resources.delta.delta_tables import DeltaTables
from resources.delta.unchanged import describe_once
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry, ModelVersion, serving_version, shadows


def current_answers(delta_tables: DeltaTables, version: ModelVersion) -> pd.DataFrame:
    """The version's predictions for current images: path, image_id, label, probability."""
    columns = [*IMAGE_KEYS, "label", "probability"]
    answers = delta_tables.read(IMAGE_PREDICTIONS, columns, of_version(version)).to_pandas()
    return answers.merge(current_keys(delta_tables), on=IMAGE_KEYS)


def side_by_side(these: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The predictions of two versions for the images that both predicted, side by side, and whether they agree."""
    both = these.merge(others, on=IMAGE_KEYS, suffixes=("", "_other"))
    same = (both["label"] == both["label_other"]) | (both["label"].isna() & both["label_other"].isna())
    return both.assign(agrees=same)


def agreement(both: pd.DataFrame) -> dict[str, Any]:
    """How far two versions agree, as columns of version_agreements."""
    answered, other_answered = both["label"].notna(), both["label_other"].notna()
    return {
        "images": len(both),
        "agreeing": int(both["agrees"].sum()),
        "agreement": float(both["agrees"].mean()) if len(both) else None,
        "only_this_answered": int((answered & ~other_answered).sum()),
        "only_other_answered": int((other_answered & ~answered).sum()),
        "mean_probability": mean(both, "probability"),
        "other_mean_probability": mean(both, "probability_other"),
    }


def mean(answers: pd.DataFrame, column: str) -> float | None:
    """The mean of a column without nulls; None if there are no values."""
    values = answers[column].dropna().to_numpy(np.float64)
    return float(values.mean()) if len(values) else None


def disagreement_sheet(both: pd.DataFrame, link_roots: Sequence[str]) -> dg.MetadataValue | None:
    """A contact sheet of the disagreements with the highest probability; None if there are none."""
    disagreements = both.loc[~both["agrees"]].sort_values("probability", ascending=False).head(SHEET_IMAGES)
    captions = [
        f"{row.label or 'no label'}, production: {row.label_other or 'no label'}" for row in disagreements.itertuples()
    ]
    pictures = thumbnails(((path, None) for path in disagreements["path"]), link_roots)
    tiles = list(zip(pictures, captions, strict=True))
    return dg.MetadataValue.md(picture_markdown(contact_sheet(tiles), "disagreements")) if tiles else None


def compare(
    delta_tables: DeltaTables, serving: ModelVersion, others: Sequence[ModelVersion], link_roots: Sequence[str]
) -> dict[str, dg.MetadataValue]:
    """Writes how often the other versions agree with the serving one; the figures and pictures as metadata."""
    metadata: dict[str, dg.MetadataValue] = {}
    rows = []
    for version in others:
        both = side_by_side(*(current_answers(delta_tables, each) for each in (version, serving)))
        key = {**key_of(version), "compared_with": serving.version, "compared_with_id": serving.version_id}
        rows.append({**key, "compared_at": datetime.now(UTC), **agreement(both)})
        if rows[-1]["agreement"] is not None:
            metadata[f"agreement_v{version.version}"] = dg.MetadataValue.float(rows[-1]["agreement"])
        if picture := disagreement_sheet(both, link_roots):
            metadata[f"disagreements_v{version.version}"] = picture
    if rows:
        figures = {name: f"new.{name}" for name in VERSION_AGREEMENTS.columns.fieldNames()}
        compared = pa.Table.from_pylist(rows, to_arrow_schema(VERSION_AGREEMENTS.columns))
        delta_tables.merge(compared, VERSION_AGREEMENTS, updates=figures)
    return metadata


@dg.asset(deps=["image_predictions", "image_files"], kinds={"deltalake"}, pool="version_agreements")
def version_agreements(
    delta_tables: DeltaTables, model_registry: ModelRegistry, image_folder: ImageFolder
) -> dg.MaterializeResult:
    """For each version in stage Staging, how often it agrees with the production version on current images."""
    before = delta_tables.snapshot(VERSION_AGREEMENTS)
    versions = model_registry.versions()
    serving = serving_version(versions)
    others = shadows(versions) if serving else []
    identify_rows(delta_tables, versions, VERSION_AGREEMENTS)
    described = describe_once(
        delta_tables,
        VERSION_AGREEMENTS.name,
        lambda: compare(delta_tables, serving, others, image_folder.real_link_roots) if serving else {},
        tables=[IMAGE_PREDICTIONS, IMAGE_FILES],
        # A table that was recreated needs its rows again.
        values=[*map(key_of, [serving, *others] if serving else []), delta_tables.table_id(VERSION_AGREEMENTS)],
    )
    return delta_tables.materialized(
        VERSION_AGREEMENTS,
        delta_tables.change_since(before, VERSION_AGREEMENTS),
        serving_version=str(serving.version) if serving else "none",
        **described,
    )
