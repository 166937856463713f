"""Whether a framework finds a GPU where Spark's tasks run (runs in an executor)."""

import subprocess
import sys

PROGRAMS = {
    "tensorflow": "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))",
    "torch": "import torch; print(torch.cuda.device_count())",
}
PROBE_SECONDS = 300


def gpus_found(framework: str) -> int:
    """How many GPUs the framework finds; 0 where it cannot be imported, or is none of the two.

    It is asked in a process of its own: a Python worker that has looked for GPUs once could not be given one later.
    """
    program = PROGRAMS.get(framework, "print(0)")
    probe = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PROBE_SECONDS)
    return int(probe.stdout) if probe.returncode == 0 else 0
