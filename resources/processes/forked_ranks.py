"""The process that Horovod's ranks on this machine are forked from, after it has imported what they need.

Importing a framework takes seconds of CPU time and hundreds of megabytes, which the ranks share this way.
`local_ranks` starts it with its own process id, a folder, the variables of each rank and the modules. It writes the
pickled call to the folder's file `call`, and then a line to this process's stdin.
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
from typing import BinaryIO

from resources.processes.child_process import end_with_parent
from resources.processes.rank_process import forward, killed, reported, run_call

# A process that a rank has started may keep its output open. It ends with all others, once this process has ended.
LAST_LINES_SECONDS = 2


@dataclass(frozen=True)
class ForkedRank:
    """A rank's process, and the descriptors from which its output is read."""

    process: int
    stdout: int
    stderr: int


def import_all(modules: Sequence[str]) -> None:
    """Imports modules; a RuntimeError if one of them starts a thread, which no fork would have."""
    for name in modules:
        importlib.import_module(name)
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        raise RuntimeError(f"importing {', '.join(modules)} started threads: {', '.join(others)}")


def fork_rank(call: bytes, returned: Path, variables: Mapping[str, str]) -> ForkedRank:
    """Forks a process that makes the pickled call, with additional environment variables."""
    parent, (from_stdout, stdout), (from_stderr, stderr) = os.getpid(), os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        end_with_parent(parent)
        os.dup2(stdout, sys.stdout.fileno())
        os.dup2(stderr, sys.stderr.fileno())
        os.close(from_stdout)
        os.close(from_stderr)
        os.environ.update(variables)
        run_call(call, returned)
    os.close(stdout)
    os.close(stderr)
    return ForkedRank(process, from_stdout, from_stderr)


def wait_for(ranks: Sequence[ForkedRank]) -> None:
    """Forwards the ranks' lines and reports the signals that kill them, until all have ended."""
    writing = threading.Lock()

    def write(stream: BinaryIO, line: bytes) -> None:
        with writing:
            stream.write(line if line.endswith(b"\n") else line + b"\n")
            stream.flush()

    def wait(rank: ForkedRank) -> None:
        forwarding = [
            forward(os.fdopen(descriptor, "rb"), partial(write, stream.buffer))
            for descriptor, stream in ((rank.stdout, sys.stdout), (rank.stderr, sys.stderr))
        ]
        code = os.waitstatus_to_exitcode(os.waitpid(rank.process, 0)[1])
        for thread in forwarding:
            thread.join(LAST_LINES_SECONDS)
        if code < 0:
            write(sys.stderr.buffer, killed(-code).to_line().encode() + b"\n")

    with ThreadPoolExecutor(len(ranks)) as threads:
        list(threads.map(wait, ranks))


def fork_and_wait(folder: Path, variables: Sequence[Mapping[str, str]]) -> None:
    """Runs the call in the folder on ranks with these variables; their results are files named by their numbers."""
    call = (folder / "call").read_bytes()
    gc.freeze()  # otherwise collecting garbage would copy the memory that the ranks share
    wait_for([fork_rank(call, folder / str(rank), of_rank) for rank, of_rank in enumerate(variables)])


def main() -> None:
    """Imports the modules, waits for the call, and runs it on the ranks."""
    parent, folder, variables, *modules = sys.argv[1:]
    end_with_parent(int(parent))
    reported(import_all, modules)
    if sys.stdin.buffer.readline():
        reported(fork_and_wait, Path(folder), json.loads(variables))
    os._exit(0)  # as ranks do


if __name__ == "__main__":
    main()
