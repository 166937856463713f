"""The Delta versions of the tables that a model version was trained on, as its tags say."""

import json
from collections.abc import Iterable

from image_assets.schemas import TABLES
from resources.delta_log import why_unreadable
from resources.delta_tables import DeltaTables
from resources.model_registry import ModelVersion

TABLE_VERSIONS = "table_versions"


def table_versions(version: ModelVersion) -> dict[str, int]:
    """Tables by name, and their Delta versions; a ValueError when the tag does not say them."""
    said = version.tags.get(TABLE_VERSIONS)
    try:
        versions = json.loads(said or "")
    except json.JSONDecodeError:
        versions = None
    if not versions or not isinstance(versions, dict) or not all(type(at) is int for at in versions.values()):
        raise ValueError(
            f"{version.uri}: the tag {TABLE_VERSIONS} is {said!r}, expected JSON of tables and Delta versions, "
            'such as {"image_splits": 12}'
        )
    return versions


def lost(delta_tables: DeltaTables, versions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Those of the tables' versions that cannot be read any longer, and that in words."""
    by_name = {table.name: table for table in TABLES}
    found = {}
    for name, at in sorted(versions):
        if name in by_name and (why := why_unreadable(delta_tables.uri(by_name[name]), at)):
            found[name, at] = f"{name} at Delta version {at} cannot be read: {why}"
    return found
