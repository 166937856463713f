"""Packages of model versions, built and started as they say, where no Docker engine runs."""

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pandas as pd

PATIENCE_SECONDS = 240


def new_environment(folder: Path, python: str) -> dict[str, str]:
    """Create an empty virtual environment whose `pip` is uv, and return the variables of a shell in it."""
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, str(folder)], check=True)
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m uv pip "$@" --python {folder}/bin/python\n')
    pip.chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    return {**variables, "PATH": f"{folder / 'bin'}:/usr/bin:/bin"}


@dataclass
class Image:
    """The result of a Dockerfile's steps: working directory, variables, user, command."""

    folder: Path
    variables: dict[str, str]
    user: str = "root"
    command: tuple[str, ...] = ()


def built(package: Path, root: Path) -> Image:
    """Run the steps of the package's Dockerfile below a root folder."""
    lines = [line for line in (package / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    steps = [tuple(line.split(" ", 1)) for line in lines]
    assert steps[0][0] == "FROM"
    python = steps[0][1].removeprefix("python:").removesuffix("-slim")
    image = Image(root, new_environment(root / "python", python))
    for name, rest in steps[1:]:
        if name == "WORKDIR":
            image.folder = root / rest.lstrip("/")
            image.folder.mkdir(parents=True)
        elif name == "ENV":
            image.variables |= dict(part.split("=", 1) for part in rest.split())
        elif name == "COPY":
            source, target = (Path(part) for part in rest.split())
            copy = shutil.copytree if (package / source).is_dir() else shutil.copy
            copy(package / source, image.folder / target)
        elif name == "RUN":
            subprocess.run(["sh", "-c", rest], cwd=image.folder, env=image.variables, check=True)
        elif name == "USER":
            image.user = rest
        elif name == "ENTRYPOINT":
            image.command = tuple(json.loads(rest))
        else:
            assert name == "EXPOSE", name
    return image


@contextmanager
def started(image: Image, port: str) -> Iterator[str]:
    """Run the image's command on the loopback interface, and yield its address."""
    variables = {**image.variables, "HOST": "127.0.0.1", "PORT": port}
    log = image.folder / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(image.command, cwd=image.folder, env=variables, stdout=output, stderr=output)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(PATIENCE_SECONDS):
                assert server.poll() is None, log.read_text()[-3000:]
                if answers(address):
                    break
                time.sleep(1)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def answers(address: str) -> bool:
    """Whether a server is ready."""
    try:
        return urlopen(f"{address}/ping", timeout=10).status == 200
    except (URLError, ConnectionError, TimeoutError):
        return False


def asked(address: str, request: bytes) -> pd.DataFrame:
    """Return the server's predictions for a request."""
    question = Request(f"{address}/invocations", request, {"Content-Type": "application/json"})
    return pd.DataFrame(json.load(urlopen(question, timeout=120))["predictions"])


def request_for(contents: Sequence[bytes]) -> bytes:
    """Return a request with the contents of images."""
    rows = [[b64encode(content).decode()] for content in contents]
    return json.dumps({"dataframe_split": {"columns": ["content"], "data": rows}}).encode()


def edge_answers(package: Path, files: Sequence[Path], root: Path) -> pd.DataFrame:
    """Return the predictions of the edge example in a separate environment."""
    variables = new_environment(root, "3.11")
    folder = package / "edge"
    subprocess.run(["pip", "install", "-q", "-r", "requirements.txt"], cwd=folder, env=variables, check=True)
    command = ["python", "example.py", *map(str, files)]
    output = subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True, text=True).stdout
    found = pd.DataFrame(
        [line.rsplit(" ", 2) for line in output.splitlines()], columns=["path", "label", "probability"]
    )
    return found.assign(probability=found["probability"].astype(float))
