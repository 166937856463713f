"""The files of a logged model: whether they are as they were logged, and safe to load."""

import shutil
from hashlib import file_digest, sha256
from pathlib import Path

MODEL_NAME = "image_classifier"
BYTECODE = "__pycache__"  # a folder that Python writes beside code, and reads instead of the code
ADDED_BY_THE_REGISTRY = frozenset({"registered_model_meta"})  # MLflow adds it to downloaded versions


def download_files(uri: str, folder: Path) -> Path:
    """Downloads the files of a logged model or a version to a subfolder of the folder, and returns its path.

    Without bytecode: loading a version from a local store leaves some there, so no digest includes it, and whoever can
    write to the store could place another program. Set MLflow's tracking URI before.
    """
    from mlflow.artifacts import download_artifacts

    files = Path(download_artifacts(uri, dst_path=str(folder)))  # without `dst_path`, they stay in the store
    for bytecode in [*files.rglob(BYTECODE)]:
        if bytecode.is_dir():
            shutil.rmtree(bytecode)
    return files


def files_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a downloaded model, except what registering adds."""
    total = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in ADDED_BY_THE_REGISTRY:
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
