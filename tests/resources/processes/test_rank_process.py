"""Tests of a rank's process: the call it reads, the result it leaves, and how it reports a failure."""

import atexit
import os
import pickle
import subprocess
import sys
from pathlib import Path

from pyspark import cloudpickle

from resources.processes.rank_process import FailureReport, failure_in


def test_a_failure_survives_a_line_of_output() -> None:
    failure = FailureReport("ValueError", "two\nlines", "Traceback …")

    assert failure_in(f"[1]<stderr>:{failure.to_line()}\n") == failure
    assert failure_in("[1]<stderr>:ValueError: two") is None


def test_a_library_that_aborts_at_exit_does_not_fail_a_rank_that_returned(tmp_path: Path) -> None:
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
