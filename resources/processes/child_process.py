"""A process that ends with its parent."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux: sets the signal a process receives when its parent ends


def end_with_parent(parent: int) -> None:
    """Ends this process when its parent ends, even if the parent is killed. `parent` is its process id."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(0)
