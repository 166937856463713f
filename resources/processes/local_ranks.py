"""Runs a function on Horovod's ranks on this machine without Spark, whose start takes longer than fitting a head.

The ranks are forks of one process (`forked_ranks`), which imports their libraries once.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyspark import cloudpickle

from resources.processes.rank_process import start, watch
from resources.processes.ranks import Failures, RankOutput, rank_environment

LOOPBACK = "127.0.0.1"


@contextmanager
def local_ranks(processes: int, imports: Sequence[str]) -> Iterator[Callable[..., list[Any]]]:
    """Starts the process that ranks are forked from; it imports modules while the block prepares the call.

    Args:
        processes: How many ranks.
        imports: The modules. They must start no Python threads, which forks would not have.

    Yields:
        A function that calls another one on each rank, once, and returns the results in order of rank. Function and
        arguments are pickled.
    """
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    slots = get_host_assignments(parse_hosts(f"localhost:{processes}"), processes)
    rendezvous = RendezvousServer(verbose=0)
    port = rendezvous.start()
    rendezvous.init(slots)
    environment = {
        **rank_environment(processes),
        **{name: str(value) for name, value in create_run_env_vars(LOOPBACK, [loopback_interface()], port).items()},
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),  # what this process can import
    }
    stop = threading.Event()
    failures = Failures(stop.set)
    stdout, stderr = (RankOutput(stream, failures).write for stream in (sys.stdout, sys.stderr))
    with TemporaryDirectory(prefix="ranks") as folder, ThreadPoolExecutor(1) as thread:
        try:
            variables = json.dumps([create_slot_env_vars(slot) for slot in slots])
            command = [sys.executable, "-m", "resources.processes.forked_ranks", str(os.getpid()), folder, variables]
            process = start([*command, *imports], environment, subprocess.PIPE)
            ended = thread.submit(watch, process, stop, stdout=stdout, stderr=stderr)

            # Any: the function is the caller's, and so are its arguments and results.
            def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
                Path(folder, "call").write_bytes(cloudpickle.dumps((function, args, kwargs)))
                with suppress(BrokenPipeError):  # it has ended, and `watch` tells why
                    print(file=process.stdin, flush=True)
                ended.result()
                returned = [Path(folder, str(rank)) for rank in range(processes)]
                if failures.any_reported or not all(file.exists() for file in returned):
                    raise failures.to_error(processes)
                return [pickle.loads(file.read_bytes()) for file in returned]

            yield run
        finally:
            stop.set()
            failures.close()
            rendezvous.stop()


def loopback_interface() -> str:
    """The name of the network interface through which processes of this machine reach each other."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
