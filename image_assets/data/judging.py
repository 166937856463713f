"""The first look at a file, before it becomes a row (runs in each executor)."""

from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BufferedReader
from typing import cast

from image_assets.file_states import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.pixels import FORMATS, SIGNATURE_BYTES, format_of
from resources.file_system import FileChanged, opened, read_content, state

BYTES_PER_SECOND = 16 * 1024**2  # the time limit grows with the file: reading and decoding go at least this fast


@dataclass(frozen=True)
class Limits:
    """How much of a file is taken in: its bytes in tables, at all, and what decoding it may take."""

    content_bytes: int = 512 * 1024**2
    size_bytes: int = 16 * 1024**3
    seconds: float = 10
    memory_bytes: int = 1024**3

    def seconds_for(self, length: int) -> float:
        """The time limit for a file of this length."""
        return self.seconds + length / BYTES_PER_SECOND


@dataclass(frozen=True)
class Judgement:
    """What becomes of a file: its bytes when it may be an image (none above the content limit), else why not."""

    state: str
    content: bytes | None = None
    image_id: str | None = None
    reason: str | None = None
    message: str | None = None


def judge(path: str, length: int, limits: Limits) -> Judgement:
    """Look at a file in the order size, reading, first bytes; no decoder sees it yet."""
    if length > limits.size_bytes:
        message = f"{length:,} bytes: expected at most {limits.size_bytes:,}; make the file smaller or raise the limit"
        return Judgement(QUARANTINED, reason="too_large", message=message)
    try:
        if length > limits.content_bytes:
            content, (start, image_id) = None, streamed(path, length=length)
        else:
            content = read_content(path, length=length)
            start, image_id = content[:SIGNATURE_BYTES], sha256(content).hexdigest()
    except FileChanged as changed:
        return Judgement(PENDING, reason="changed", message=str(changed))
    except FileNotFoundError:
        return Judgement(MISSING)
    except OSError as error:
        message = f"{error}: expected a file that can be read; check its folder's links and permissions"
        return Judgement(QUARANTINED, reason="unreadable_file", message=message)
    if not length:
        message = "0 bytes: expected an image; copy the file again"
        return Judgement(QUARANTINED, image_id=image_id, reason="empty", message=message)
    if format_of(start) is None:
        message = f"{length:,} bytes beginning with {start[:8]!r}: expected one of {', '.join(FORMATS)}"
        return Judgement(QUARANTINED, image_id=image_id, reason="not_an_image", message=f"{message}; convert the file")
    return Judgement(CURRENT, content, image_id)


def streamed(path: str, *, length: int) -> tuple[bytes, str]:
    """A file's first bytes and its SHA-256, read in blocks; FileChanged and OSError as `read_content` raises them."""
    with opened(path) as file:
        before = state(file)
        start = file.read(SIGNATURE_BYTES)
        file.seek(0)
        image_id = file_digest(cast("BufferedReader", file), "sha256").hexdigest()
        if file.tell() != length or state(file) != before:
            raise FileChanged(f"{path} had {length} bytes when listed and {file.tell()} when read")
    return start, image_id
