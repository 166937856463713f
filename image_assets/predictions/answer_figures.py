"""Which labels a version gives, and how sure it is of them."""

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.bar_pictures import by_label, stacked_bars
from image_assets.pictures import to_markdown
from image_assets.schemas import IMAGE_PREDICTIONS
from resources.thin_tables import ThinTables

SURENESS = {"0.9 or surer": 0.9, "0.6 to 0.9": 0.6, "below 0.6": 0.0}  # the least probability of each


def by_sureness(answers: pd.DataFrame) -> pd.DataFrame:
    """How many answers (label, probability) name each label, in columns by how sure they are."""
    of = answers["probability"].to_numpy(np.float64)
    sure = np.select([of >= least for least in SURENESS.values()], [*SURENESS], default="")
    return by_label(answers.assign(sure=sure), "sure", [*SURENESS])


def answers_look(thin_tables: ThinTables, version: int) -> dict[str, dg.MetadataValue]:
    """Metadata with a figure of all answers of a version; nothing where it gave none."""
    answered = (pc.field("model_version") == version) & pc.field("label").is_valid()
    answers = thin_tables.read(IMAGE_PREDICTIONS, ["label", "probability"], answered).to_pandas()
    if answers.empty:
        return {}
    picture = stacked_bars(by_sureness(answers), "answers with each label, by probability")
    return {"answers": dg.MetadataValue.md(to_markdown(picture, f"{len(answers):,} answers of version {version}"))}
