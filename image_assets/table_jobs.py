"""What the jobs share that do the same to every table: an op for each, under the pool that its asset writes under."""

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Protocol

import dagster as dg

from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, RAW_IMAGES, REPLAYED_FILES, TABLES
from resources.tables import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WITH_LEDGER = (REPLAYED_FILES, RAW_IMAGES, FEATURED_IMAGES)
# The pools of those assets that share one; another table's pool has its name.
POOLS = {table.name: "image_files" for table in WITH_LEDGER} | {IMAGE_PREDICTIONS.name: "gpu"}


class TablesConfig(Protocol):
    """A config that names tables."""

    tables: list[str]


def pool(table: Table) -> str:
    """The pool that the table's asset writes under."""
    return POOLS.get(table.name, table.name)


def for_every_op(verb: str, config: TablesConfig) -> dg.RunConfig:
    """The same config for the op of every table; a ValueError when it names a table that is none."""
    if unknown := set(config.tables) - {table.name for table in TABLES}:
        known = ", ".join(table.name for table in TABLES)
        raise ValueError(f"there is no table {', '.join(sorted(unknown))}: expected some of {known}")
    return dg.RunConfig(ops={f"{verb}_{table.name}": config for table in TABLES})


def records(rows: Sequence["DataclassInstance"], of: type["DataclassInstance"]) -> dg.TableMetadataValue:
    """The rows, all of one dataclass, as Dagster's UI shows a table."""
    names = [field.name for field in fields(of)]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(names, astuple(row), strict=True))) for row in rows],
        schema=dg.TableSchema(
            [dg.TableColumn(field.name, "string" if field.type is str else "int") for field in fields(of)]
        ),
    )
