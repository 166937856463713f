"""Materializes assets of the graph in a separate process, set up by its environment variables.

`python -m tests.support.graph_run <asset>,… <asset>,…`: one run for each argument. It prints the metadata of each
run by asset, as JSON, and then the command lines of the processes that it started.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil

from scripts.cluster import CLUSTER_ENVIRONMENT
from scripts.home import hide_library_messages, open_home
from scripts.runs import failures, metadata_of

ROOT = Path(__file__).parents[2]


def graph_run(home: Path, *runs: str, **variables: str) -> tuple[list[dict[str, dict]], str]:
    """Return the metadata of each run by asset, and the output of the process.

    Raises:
        AssertionError: If the process failed.
    """
    environment = {**os.environ, **CLUSTER_ENVIRONMENT, "IMAGE_ASSETS_HOME": str(home), **variables}
    command = [sys.executable, "-m", __name__, *runs]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = answer.stdout + answer.stderr
    assert answer.returncode == 0, output[-5000:]
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")], output


def json_values(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return the entries that JSON can represent."""
    return {name: value for name, value in metadata.items() if isinstance(value, str | int | float)}


def main(*runs: str) -> None:
    """Materialize the assets, one run after the other."""
    open_home()
    hide_library_messages()
    from definitions import defs

    job = defs.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        for assets in runs:
            keys = [dg.AssetKey(name) for name in assets.split(",")]
            result = job.execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)
            if not result.success:
                sys.exit("\n".join(failures(result)))
            made = {name: json_values(metadata) for name, metadata in metadata_of(result).items()}
            sys.stdout.write(json.dumps(made) + "\n")
            sys.stdout.flush()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                sys.stdout.write(" ".join(process.cmdline()) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
