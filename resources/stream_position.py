"""How far a stream of a Delta table has come, as Spark's checkpoint says."""

import json
from dataclasses import dataclass

from resources.object_storage import fresh


@dataclass(frozen=True)
class StreamPosition:
    """The Delta version that a stream goes on from; `whole` when it is still in the rows that were there at first."""

    version: int
    whole: bool
    table_id: str  # Delta's own: a table that was made anew has another


def stream_position(checkpoint: str) -> StreamPosition | None:
    """Where the stream of this checkpoint goes on; None where no batch of it was ever committed."""
    system, folder = fresh(checkpoint)
    names = [path.rpartition("/")[2] for path in system.glob(f"{folder}/commits/[0-9]*")]
    if not names:
        return None
    _, _, offset = system.cat_file(f"{folder}/offsets/{max(names, key=int)}").decode().split("\n")
    said = json.loads(offset)
    return StreamPosition(said["reservoirVersion"], said["isStartingVersion"], said["reservoirId"])


def forget_stream(checkpoint: str) -> None:
    """Delete the checkpoint, if there is one: its stream starts from the first row."""
    system, folder = fresh(checkpoint)
    if system.exists(folder):
        system.rm(folder, recursive=True)
