"""What assets said of themselves when they were last materialized."""

from collections.abc import Mapping

import dagster as dg


def last_said(instance: dg.DagsterInstance, asset: str) -> Mapping[str, object]:
    """The metadata of the asset's last materialization, whichever run it was in."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    return {name: value.value for name, value in metadata.items()}
