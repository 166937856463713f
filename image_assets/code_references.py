"""Where each asset's code is, as Dagster's UI shows it."""

import warnings
from collections.abc import Sequence

import dagster as dg


def with_code_references(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets, each with its file and line. Dagster warns each time that this is beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        found = dg.with_source_code_references(assets)
    return [asset for asset in found if isinstance(asset, dg.AssetsDefinition)]
