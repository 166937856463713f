"""A look at what is quarantined: how many for which reason, and what can be shown of them."""

from io import BytesIO
from urllib.parse import unquote

import dagster as dg
from PIL import Image, ImageFile
from pyspark.sql import functions as F

from image_assets.data.judging import QUARANTINED
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.pictures import contact_sheet, to_markdown
from image_assets.pixels import BOMBS, BROKEN, FORMATS
from image_assets.schemas import IMAGE_FILES
from resources.delta_tables import DeltaTables
from resources.file_system import opened

SHOWN = 32  # files on the sheet
SIDE_PIXELS = 112
SECONDS, MEMORY_BYTES = 5, 512 * 1024**2


def quarantine_look(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the quarantined files by reason, an example of each message, and a contact sheet."""
    files = delta_tables.read(IMAGE_FILES).where(F.col("state") == QUARANTINED)
    reasons = files.groupBy("reason").agg(
        F.count("path").alias("files"), F.first("message").alias("such as"), F.max("last_seen").alias("last seen")
    )
    found = [row.asDict() for row in reasons.orderBy(F.desc("files"), "reason").collect()]
    if not found:
        return {}
    table = dg.MetadataValue.table([dg.TableRecord({name: str(row[name]) for name in row}) for row in found])
    newest = files.orderBy(F.desc("last_seen"), "path").select("path", "reason").limit(SHOWN).collect()
    with GuardedProcess(glimpse, memory_bytes=MEMORY_BYTES) as guarded:
        looks = [guarded.answer(row["path"], seconds=SECONDS) for row in newest]
    captions = [f"{row['reason']}: {unquote(row['path'].rpartition('/')[2])}" for row in newest]
    tiles = [(b"" if isinstance(look, Failure) else look, text) for look, text in zip(looks, captions, strict=True)]
    total = sum(row["files"] for row in found)
    sheet = to_markdown(contact_sheet(tiles, SIDE_PIXELS), f"what can be shown of {total:,} quarantined files")
    return {"quarantined": table, "quarantined_files": dg.MetadataValue.md(sheet)}


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
