"""A look at what is quarantined: how many for which reason, and what can be shown of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any
from urllib.parse import unquote

import dagster as dg
import pyarrow.compute as pc
from PIL import Image, ImageFile

from image_assets.file_states import QUARANTINED
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.pictures import contact_sheet, to_markdown
from image_assets.pixels import BOMBS, BROKEN, FORMATS
from image_assets.schemas import IMAGE_FILES
from resources.file_system import opened
from resources.thin_tables import ThinTables

SHOWN = 32  # files on the sheet
SIDE_PIXELS = 112
SECONDS, MEMORY_BYTES = 5, 512 * 1024**2


def quarantine_look(thin_tables: ThinTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the quarantined files by reason, an example of each message, and a contact sheet."""
    rows = thin_tables.read(
        IMAGE_FILES, ["path", "reason", "message", "last_seen"], pc.field("state") == QUARANTINED
    ).to_pylist()
    if not rows:
        return {}
    rows.sort(key=lambda row: (-row["last_seen"].timestamp(), row["path"]))
    newest = rows[:SHOWN]
    with GuardedProcess(glimpse, memory_bytes=MEMORY_BYTES) as guarded:
        looks = [guarded.answer(row["path"], seconds=SECONDS) for row in newest]
    captions = [f"{row['reason']}: {unquote(row['path'].rpartition('/')[2])}" for row in newest]
    tiles = [(b"" if isinstance(look, Failure) else look, text) for look, text in zip(looks, captions, strict=True)]
    sheet = to_markdown(contact_sheet(tiles, SIDE_PIXELS), f"what can be shown of {len(rows):,} quarantined files")
    return {"quarantined": by_reason(rows), "quarantined_files": dg.MetadataValue.md(sheet)}


def by_reason(newest_first: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """How many files for each reason, the most frequent one first, with the newest message and its time."""
    counts = Counter(row["reason"] for row in newest_first)
    newest = {row["reason"]: row for row in reversed(newest_first)}
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "reason": str(reason),
                    "files": str(count),
                    "such as": str(newest[reason]["message"]),
                    "last seen": f"{newest[reason]['last_seen']:%Y-%m-%d %H:%M:%S} UTC",
                }
            )
            for reason, count in sorted(counts.items(), key=lambda found: (-found[1], str(found[0])))
        ]
    )


def glimpse(path: str) -> bytes:
    """A small JPEG of as much of a broken image as can be decoded, or nothing; for a guarded process."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with opened(path) as file, Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (SIDE_PIXELS, SIDE_PIXELS))
            image.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
            small = BytesIO()
            image.convert("RGB").save(small, "JPEG")
    except (*BROKEN, *BOMBS):
        return b""
    return small.getvalue()
