"""The files that are in the landing folder now, as images that could be read."""

import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.file_states import CURRENT
from image_assets.schemas import IMAGE_FILES
from resources.thin_tables import ThinTables

KEYS = ["path", "image_id"]


def current_files(ledger: DataFrame) -> DataFrame:
    """Path and image_id of the files in state `current`; `ledger` holds rows of image_files."""
    return ledger.where(F.col("state") == CURRENT).select(*KEYS)


def current_keys(thin_tables: ThinTables) -> pd.DataFrame:
    """The same, without Spark."""
    return thin_tables.read(IMAGE_FILES, KEYS, pc.field("state") == CURRENT).to_pandas()
