"""Runs a function on Horovod's ranks on this machine without Spark, whose start takes longer than fitting a head."""

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyspark import cloudpickle

from resources.processes.rank_process import run_watched
from resources.processes.ranks import Failures, RankOutput, rank_environment

LOOPBACK = "127.0.0.1"


# Any: the function is the caller's, and so are its arguments and results.
def run_on_this_machine(
    processes: int, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """What the function returns on each Horovod rank, in order of rank."""
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
    with TemporaryDirectory(prefix="ranks") as folder, ThreadPoolExecutor(processes) as threads:
        folders = [Path(folder, str(rank)) for rank in range(processes)]
        try:
            running = []
            for of_rank, slot in zip(folders, slots, strict=True):
                of_rank.mkdir()
                (of_rank / "call").write_bytes(cloudpickle.dumps((function, args, kwargs)))
                command = [sys.executable, "-m", "resources.processes.rank_process", str(of_rank), str(os.getpid())]
                of_slot = {**environment, **create_slot_env_vars(slot)}
                running.append(
                    threads.submit(partial(run_watched, command, of_slot, stop, stdout=stdout, stderr=stderr))
                )
            for rank in running:
                rank.result()
        finally:
            stop.set()
            failures.close()
            rendezvous.stop()
        returned = [of_rank / "returned" for of_rank in folders]
        if failures.any_reported or not all(file.exists() for file in returned):
            raise failures.to_error(processes)
        return [pickle.loads(file.read_bytes()) for file in returned]


def loopback_interface() -> str:
    """The name of the network interface through which processes of this machine reach each other."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
