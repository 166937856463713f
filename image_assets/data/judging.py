"""The first look at a file, before it becomes a row (runs in each executor)."""

from dataclasses import dataclass
from hashlib import sha256

from image_assets.current_files import CURRENT
from image_assets.pixels import UnreadableImage, to_features, to_header
from resources.file_system import FileChanged, read_content

PENDING, QUARANTINED, MISSING = "pending", "quarantined", "missing"


@dataclass(frozen=True)
class Judgement:
    """What becomes of a file: its bytes when it may be an image, else why not."""

    state: str
    content: bytes | None = None
    image_id: str | None = None
    reason: str | None = None
    message: str | None = None


def judge(path: str, length: int, limit_bytes: int) -> Judgement:
    """Look at a file in the order size, reading, header; its pixels are not decoded yet."""
    if length > limit_bytes:
        message = f"{length:,} bytes: more than the content limit of {limit_bytes:,}"
        return Judgement(QUARANTINED, reason="too_large", message=message)
    try:
        content = read_content(path, length=length)
    except FileChanged as changed:
        return Judgement(PENDING, reason="changed", message=str(changed))
    except FileNotFoundError:
        return Judgement(MISSING)
    except OSError as error:
        return Judgement(QUARANTINED, reason="unreadable_file", message=str(error))
    image_id = sha256(content).hexdigest()
    try:
        to_header(content)
    except UnreadableImage as unreadable:
        return Judgement(QUARANTINED, image_id=image_id, reason=unreadable.reason, message=str(unreadable))
    return Judgement(CURRENT, content, image_id)


def decoded(judgement: Judgement) -> Judgement:
    """The judgement after a whole decode, which is where a file with an image's header may still fail."""
    if judgement.content is None:
        return judgement
    try:
        to_features(judgement.content)
    except UnreadableImage as unreadable:
        return Judgement(QUARANTINED, image_id=judgement.image_id, reason=unreadable.reason, message=str(unreadable))
    return judgement
