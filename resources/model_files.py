"""The files of a logged model in one short string, so that it can be told whether they are what was logged."""

from hashlib import file_digest, sha256
from pathlib import Path

FILES_DIGEST = "files_digest"  # the tag of a version that says what was logged
ADDED_BY_THE_REGISTRY = frozenset({"registered_model_meta"})  # MLflow writes it beside a version that is downloaded


def files_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below the folder."""
    total = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in ADDED_BY_THE_REGISTRY:
            with file.open("rb") as opened:
                total.update(f"{name}\0{file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
