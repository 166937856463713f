"""How the landing folder differs from the ledger, and whether to believe it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import ceil
from urllib.parse import unquote
from zlib import crc32

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from image_assets.data.image_files import (
    NOT_REGULAR,
    UNREADABLE_FILE,
    UNREADABLE_FOLDER,
    Decision,
    Ledger,
    LedgerEntry,
    is_among,
)
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import FileChanged, ImageFile, is_url, read_content
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.listing import Listing, Skipped
from resources.progress import ProgressLine

# A listing that lacks more current files than this is not believed: the folder may not be mounted.
PLAUSIBLE_FILES, PLAUSIBLE_SHARE = 20, 0.1
CHECKED_AT_ONCE = 1000  # files whose entries are Python objects at the same time
DEVICE = "landing_folder_device"  # the ledger's log holds the file system's id under this name


@dataclass(frozen=True)
class FolderChanges:
    """Differences between the folder and the ledger.

    `listed` counts the files in the folder, `checked` those whose size and time were compared, `current` the files in
    the ledger that are current, and `current_missing` those of them that are missing. `excluded` are files in the
    ledger that the filters now exclude; they count neither as current nor as missing.
    """

    listed: int
    checked: int
    to_read: tuple[ImageFile, ...]
    irregular: tuple[ImageFile, ...]
    missing: tuple[str, ...]
    unsettled: int = 0  # files that may still be written to; not among the others
    unreadable: tuple[Decision, ...] = ()  # about folders and new files whose names are all that can be read
    current: int = 0
    current_missing: int = 0
    excluded: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=Skipped)

    def __str__(self) -> str:
        counts = {
            "new or changed": len(self.to_read),
            "deleted": len(self.missing),
            "now excluded": len(self.excluded),
            "not regular files": len(self.irregular),
            "unreadable": len(self.unreadable),
            "still being written": self.unsettled,
        }
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        files = f"{self.listed:,} {'file' if self.listed == 1 else 'files'}"
        return f"{files}, {self.checked:,} checked: {found or 'no changes'}"

    def digest(self) -> str:
        """A short hash of the changes; empty if there are none."""
        lines = [f"{file.path}\t{file.modification_time.timestamp()}\t{file.length}" for file in self.to_read]
        lines += [f"{file.path}\tirregular" for file in self.irregular] + [f"{path}\tgone" for path in self.missing]
        lines += [f"{decision.path}\tunreadable" for decision in self.unreadable]
        lines += [f"{path}\texcluded" for path in self.excluded]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32] if lines else ""


def without_unsettled(changes: FolderChanges, image_folder: ImageFolder) -> FolderChanges:
    """The changes without the files that may still be written to."""
    whole = tuple(image_folder.old_enough(changes.to_read))
    return replace(changes, to_read=whole, unsettled=len(changes.to_read) - len(whole))


def folder_changes(
    image_folder: ImageFolder, ledger: Mapping[str, LedgerEntry], part: int | None, only: Collection[str] = ()
) -> FolderChanges:
    """Compares the folder with the ledger.

    Lists all names and checks those that are not in the ledger. Of the files in the ledger, a slice of about
    `sweep_files` is checked for a changed size or time, and about `sweep_bytes` of content on disk are hashed to find
    files that were rewritten with the same size and time. Successive values of `part` cover the whole folder.

    Args:
        image_folder: The landing folder.
        ledger: The ledger's entries by path.
        part: Number of the slice to check; None compares the size and time of every file and hashes none.
        only: Check only these paths, without listing the folder; empty for all files.

    Raises:
        FolderUnavailable: The folder does not exist or cannot be listed.
    """
    listing = image_folder.list_paths(only) if only else image_folder.list_names()
    every = Ledger.of(ledger)
    current = int(every.is_in_state(CURRENT).sum())
    some = every.named(only) if only else every
    to_check = files_to_check(listing, some, part, image_folder.sweep_files)
    seen: list[ImageFile] = []  # those that differ from the ledger, or that cannot be read
    with ProgressLine("checked", len(to_check), "files", dg.get_dagster_logger().info) as progress:
        for chunk in to_check.to_batches(max_chunksize=CHECKED_AT_ONCE):
            seen += differing_files(listing, chunk)
            progress.update(len(chunk))
    other, problems = ([file for file in seen if bool(file.problem) == failed] for failed in (False, True))
    known = some.named([*listing.unreadable, *(file.path for file in problems)])
    absent = some.filtered(~some.is_in_state(MISSING) & ~is_among(some.rows["path"], listing.names))
    newly_absent = {path: entry for path, entry in absent.items() if not is_in(path, listing.unreadable)}
    folders = (NOT_REGULAR, UNREADABLE_FOLDER)  # no file name pattern would include their names
    excluded = image_folder.filtered_out(path for path, entry in newly_absent.items() if entry.reason not in folders)
    missing = tuple(path for path in newly_absent if path not in excluded)
    # Every write to an object changes its time, so downloading it again would find nothing.
    no_sweep = is_url(image_folder.root)
    swept = [] if part is None or no_sweep else list(find_rewritten_files(listing, some, part, image_folder))
    return FolderChanges(
        listed=len(listing.names),
        checked=len(to_check),
        to_read=tuple({file.path: file for file in [*other, *swept] if file.regular}.values()),
        irregular=tuple(file for file in other if not file.regular),
        missing=missing,
        unreadable=tuple(new_unreadable(listing, problems, known)),
        current=current - sum(newly_absent[path].state == CURRENT for path in excluded),
        current_missing=sum(newly_absent[path].state == CURRENT for path in missing),
        excluded=tuple(sorted(excluded)),
        skipped=listing.skipped,
    )


def is_in(path: str, folders: Collection[str]) -> bool:
    """Whether the path is one of the folders or below one."""
    while folders and path:
        if path in folders:
            return True
        path = path.rpartition("/")[0]
    return False


def new_unreadable(
    listing: Listing, seen: Sequence[ImageFile], ledger: Mapping[str, LedgerEntry]
) -> Iterator[Decision]:
    """Decisions about unreadable folders and files that the ledger does not have yet; known files keep their state."""
    for path, problem in listing.unreadable.items():
        before = ledger.get(path)
        if before is None or (before.state, before.reason) != (QUARANTINED, UNREADABLE_FOLDER):
            name = unquote(path.rpartition("/")[2], errors="replace")
            message = (
                f"{problem}: the folder cannot be read, and files known in it keep their state; give this account "
                f"access to it, or skip it: IMAGE_ASSETS_EXCLUDE={name}"
            )
            yield Decision(path, QUARANTINED, UNREADABLE_FOLDER, message)
    for file in seen:
        before = ledger.get(file.path)
        if file.problem and (before is None or before.state == MISSING):
            message = f"{file.problem}: size and time cannot be read; check the permissions of its folder, and the disk"
            yield Decision(file.path, QUARANTINED, UNREADABLE_FILE, message)


def require_plausible(changes: FolderChanges, image_folder: ImageFolder, delta_tables: DeltaTables) -> None:
    """Raises FolderUnavailable if so many current files are missing that the folder may not be the right one.

    It may be an empty mount point, another disk, or a listing cut short. A few deleted files are believed, unless the
    folder is empty or on another file system than when it was last ingested.
    """
    missing = changes.current_missing
    if not missing:
        return
    if missing == changes.current and not changes.listed:
        why = "No file is left"
    elif missing > max(PLAUSIBLE_FILES, PLAUSIBLE_SHARE * changes.current):
        why = f"A run accepts at most {PLAUSIBLE_FILES} missing files or {PLAUSIBLE_SHARE:.0%}, whichever is more"
    elif delta_tables.transaction(IMAGE_FILES, DEVICE) not in (None, image_folder.device()):
        why = "The folder is on another file system than before"
    else:
        return
    raise FolderUnavailable(
        f"{missing:,} of {changes.current:,} current files are gone from the landing folder {image_folder.root}. "
        f"{why}. Nothing was changed. If a disk or share is not mounted, mount it. If you deleted files "
        "on purpose, launch ingest_images with the run config {ops: {raw_images: {config: {accept_missing: true}}}}."
    )


def remember_device(delta_tables: DeltaTables, image_folder: ImageFolder) -> None:
    """Records the landing folder's file system in the ledger's log, for `require_plausible`."""
    device = image_folder.device()
    if device is not None and delta_tables.transaction(IMAGE_FILES, DEVICE) != device:
        delta_tables.record_transaction(IMAGE_FILES, DEVICE, device)


def is_up_to_date(file: ImageFile, before: LedgerEntry | None) -> bool:
    """Whether the ledger describes the file as it is: the same size, time and kind, and a final result."""
    return (
        before is not None
        and not before.retry
        and before.state not in (PENDING, MISSING)
        and before.is_unchanged(file)
        and file.regular == (before.reason != NOT_REGULAR)
    )


def files_to_check(listing: Listing, ledger: Ledger, part: int | None, sweep_files: int) -> pa.Table:
    """The listed files that are new, pending, to be retried or of another kind than before, and those in this slice.

    Returns:
        Their paths with what the ledger has of them, which is null for new files.
    """
    paths, regular = pa.array(list(listing.names), pa.string()), np.fromiter(listing.names.values(), bool)
    options = pc.SetLookupOptions(ledger.rows["path"])
    found = ledger.rows.drop(["path", "image_id"]).take(pc.call_function("index_in", [paths], options))
    before = Ledger(found.append_column("path", paths))
    parts = 1 if part is None else ceil(len(ledger) / sweep_files)
    chosen = (
        np.full(len(paths), True)
        if parts <= 1
        else ~before.is_in_state(CURRENT, QUARANTINED)
        | (before.rows["length"].null_count > 0 and before.rows["length"].is_null().to_numpy())
        | before.rows["retry"].fill_null(True).to_numpy().astype(bool)
        | (regular == is_among(before.rows["reason"], [NOT_REGULAR]))
        | np.fromiter((crc32(path.encode()) % parts == (part or 0) % parts for path in listing.names), bool)
    )
    return before.filtered(chosen).rows


def differing_files(listing: Listing, expected: pa.RecordBatch) -> Iterator[ImageFile]:
    """The files that are not up to date, of those that `files_to_check` returned."""
    columns = (
        expected[name].to_pylist() for name in ("path", "state", "reason", "modified_microseconds", "length", "retry")
    )
    for path, state, reason, time, length, retry in zip(*columns, strict=True):
        before = LedgerEntry(state, reason, None, time, length, retry) if state else None
        file = listing.stat_file(path)
        # A file that was deleted meanwhile counts as missing in the next run.
        if file and (file.problem or not is_up_to_date(file, before)):
            yield file


def find_rewritten_files(listing: Listing, ledger: Ledger, part: int, image_folder: ImageFolder) -> Iterator[ImageFile]:
    """The files in this slice whose content changed although size and time did not.

    Files larger than `sweep_bytes` are only compared by `make audit`.
    """
    sweep_bytes, link_roots = image_folder.sweep_bytes, image_folder.real_link_roots
    lengths = ledger.rows["length"].fill_null(0).to_numpy()
    is_read = ledger.is_in_state(CURRENT, QUARANTINED) & ledger.rows["image_id"].is_valid().to_numpy().astype(bool)
    readable = ledger.filtered(is_read & (lengths <= sweep_bytes))
    parts = max(1, ceil(readable.rows["length"].fill_null(0).to_numpy().sum() / sweep_bytes))
    paths = readable.rows["path"].to_pylist()
    is_in_slice = np.fromiter((crc32(path.encode(), 1) % parts == part % parts for path in paths), bool)
    for path, before in readable.filtered(is_in_slice).items():
        file = listing.stat_file(path) if listing.names.get(path) else None
        if not (file and file.regular and before.is_unchanged(file)):
            continue
        if content_id(file, link_roots) not in (before.image_id, None):
            yield file


def content_id(file: ImageFile, link_roots: Sequence[str]) -> str | None:
    """The image_id of the file's current content; None if it cannot be read or is being written."""
    try:
        return sha256(read_content(file.path, length=file.length, link_roots=link_roots)).hexdigest()
    except (FileChanged, OSError):
        return None
