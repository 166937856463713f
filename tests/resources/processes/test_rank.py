"""A rank's process, from the call that it finds to what it leaves."""

import atexit
import os
import pickle
import subprocess
import sys
from pathlib import Path

from pyspark import cloudpickle


def test_what_libraries_do_when_python_ends_makes_no_failure_of_an_answer(tmp_path: Path) -> None:
    def rank() -> str:
        atexit.register(os.abort)
        sys.stdout.write("trained")
        return "an answer"

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        (tmp_path / "call").write_bytes(cloudpickle.dumps((rank, [], {})))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    command = [sys.executable, "-m", "resources.processes.rank_process", str(tmp_path), str(os.getpid())]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "trained"), process.stderr
    assert pickle.loads((tmp_path / "returned").read_bytes()) == "an answer"
