"""Child processes: they end with their parent, start faster, and count GPUs (run in executors)."""

import ctypes
import gc
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # Linux: sets the signal a process receives when its parent ends
PROBE_SECONDS = 300
COLLECTED_OBJECTS = 100_000  # Python's default is 700


def end_with_parent(parent: int) -> None:
    """Ends this process when its parent ends, even if the parent is killed. `parent` is its process id."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(0)


def collect_rarely() -> None:
    """Look for cyclic garbage less often: libraries make a million objects while they are imported, none of it garbage.

    Commands start up to a sixth faster.
    """
    gc.set_threshold(COLLECTED_OBJECTS, *gc.get_threshold()[1:])


def gpus_found(program: str) -> int:
    """The number of GPUs that a Python program prints; 0 if it fails, as when the framework is not installed.

    It runs in another process: a Python worker that has looked for GPUs cannot be restricted to one afterwards.

    Raises:
        TimeoutError: The program does not end, as when the GPU's driver hangs.
    """
    command = [sys.executable, "-c", program]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"looking for GPUs took longer than {PROBE_SECONDS} s: check whether nvidia-smi answers on this machine, "
            "or set IMAGE_ASSETS_DEVICE=cpu"
        ) from error
    return int(probe.stdout) if probe.returncode == 0 else 0
