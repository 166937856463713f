"""The files of a logged model: whether they are as they were logged, and safe to load."""

from hashlib import file_digest, sha256
from pathlib import Path

MODEL_NAME = "image_classifier"
BYTECODE = "__pycache__"  # Python writes it beside the code of a version that is loaded from a local store
ADDED_BY_THE_REGISTRY = frozenset({"registered_model_meta"})  # MLflow adds it to downloaded versions


def files_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files below the folder, except what registering and loading add."""
    total = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in ADDED_BY_THE_REGISTRY and file.parent.name != BYTECODE:
            with file.open("rb") as opened:
                total.update(f"{name}\0{file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def is_stored_as_code(folder: Path) -> bool:
    """Whether a model is a Python file; any other may contain a pickle, which can run anything when it is loaded."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN
    from mlflow.pyfunc.loaders import code_model
    from mlflow.pyfunc.model import MODEL_CODE_PATH

    flavor = Model.load(str(folder)).flavors.get(FLAVOR_NAME, {})
    return flavor.get(MAIN) == code_model.__name__ and MODEL_CODE_PATH in flavor
