"""Counts the GPUs that a framework finds where Spark's tasks run (runs in an executor)."""

import subprocess
import sys

PROBE_SECONDS = 300


def gpus_found(program: str) -> int:
    """The number of GPUs that a Python program prints; 0 if it fails, as when the framework is not installed.

    It runs in another process: a Python worker that has looked for GPUs cannot be restricted to one afterwards.
    """
    probe = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PROBE_SECONDS)
    return int(probe.stdout) if probe.returncode == 0 else 0
