"""The files that are in the landing folder now, as images that could be read."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

CURRENT = "current"


def current_files(ledger: DataFrame) -> DataFrame:
    """Path and image_id of the files in state `current`; `ledger` holds rows of image_files."""
    return ledger.where(F.col("state") == CURRENT).select("path", "image_id")
