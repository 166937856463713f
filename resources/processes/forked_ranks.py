"""The process that Horovod's ranks on this machine are forked from, after it has imported what they need.

Importing a framework takes seconds of CPU time and hundreds of megabytes, which the ranks share this way.
`local_ranks` starts it with its own process id, a folder for results, the variables of each rank and the modules, and
sends the pickled call to its stdin.
"""

import gc
import importlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from resources.processes.child_process import end_with_parent
from resources.processes.rank_process import forward, killed, reported, run_call


@dataclass(frozen=True)
class ForkedRank:
    """A rank's process, and the descriptors from which its output is read."""

    process: int
    stdout: int
    stderr: int


def fork_rank(call: bytes, returned: Path, variables: Mapping[str, str]) -> ForkedRank:
    """Makes a pickled call in a copy of this process, with more environment variables."""
    parent, (from_stdout, stdout), (from_stderr, stderr) = os.getpid(), os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        end_with_parent(parent)
        os.dup2(stdout, sys.stdout.fileno())
        os.dup2(stderr, sys.stderr.fileno())
        os.environ.update(variables)
        run_call(call, returned)
    os.close(stdout)
    os.close(stderr)
    return ForkedRank(process, from_stdout, from_stderr)


def wait_for(ranks: Sequence[ForkedRank]) -> None:
    """Forwards the ranks' lines and reports the signals that kill them, until all have ended."""
    writing = threading.Lock()

    def write(stream: TextIO, line: str) -> None:
        with writing:
            stream.write(line)
            stream.flush()

    def wait(rank: ForkedRank) -> None:
        forwarding = [
            forward(os.fdopen(descriptor, errors="replace"), partial(write, stream))
            for descriptor, stream in ((rank.stdout, sys.stdout), (rank.stderr, sys.stderr))
        ]
        code = os.waitstatus_to_exitcode(os.waitpid(rank.process, 0)[1])
        if code < 0:
            write(sys.stderr, killed(-code).to_line() + "\n")
        for thread in forwarding:
            thread.join()

    with ThreadPoolExecutor(len(ranks)) as threads:
        list(threads.map(wait, ranks))


def main() -> None:
    """Imports the modules, reads the call, and runs it on the ranks."""
    parent, folder, variables, *modules = sys.argv[1:]
    end_with_parent(int(parent))
    for name in modules:
        reported(importlib.import_module, name)
    call = sys.stdin.buffer.read()
    gc.freeze()  # otherwise collecting garbage would copy the memory that the ranks share
    wait_for([fork_rank(call, Path(folder, str(rank)), of_rank) for rank, of_rank in enumerate(json.loads(variables))])


if __name__ == "__main__":
    main()
