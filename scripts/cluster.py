"""A Spark standalone cluster on this machine, one master and some workers; Ctrl-C stops all of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyspark

from scripts.prerequisites import missing_java, to_message
from scripts.terminal import PROGRAM, ROOT, explain_errors, styled

HOST = "127.0.0.1"
# The cluster's processes and a driver that uses it need the same address, Python and source.
CLUSTER_ENVIRONMENT = {"SPARK_LOCAL_IP": HOST, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
# Everything else must come from a driver, as on other machines.
INHERITED = ("PATH", "JAVA_HOME", "HOME", "TMPDIR", "SPARK_DAEMON_JAVA_OPTS")
START_SECONDS = 60
STOP_SECONDS = 10


@contextmanager
def standalone_cluster(*, workers: int = 2, memory: str = "1g") -> Iterator[str]:
    """Runs a cluster of workers with one core each, and yields the master's URL.

    Use it from a driver in another process: a process has only one Spark session.
    """
    with TemporaryDirectory(prefix="cluster") as folder, ExitStack() as running:
        port = free_port()
        arguments = ["--host", HOST, "--webui-port", "0"]
        running.enter_context(spark_process("master.Master", *arguments, "--port", str(port), folder=folder))
        wait_until_open(port)
        small = ["--cores", "1", "--memory", memory, "--work-dir", folder, f"spark://{HOST}:{port}"]
        for _ in range(workers):
            running.enter_context(spark_process("worker.Worker", *arguments, *small, folder=folder))
        yield f"spark://{HOST}:{port}"


@contextmanager
def spark_process(name: str, *arguments: str, folder: str) -> Iterator[None]:
    """Runs one process of the cluster, with the environment it would have on a separate machine."""
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    inherited = {variable: os.environ[variable] for variable in INHERITED if variable in os.environ}
    environment = {**inherited, **CLUSTER_ENVIRONMENT, "SPARK_DAEMON_MEMORY": "256m"}
    command = [spark_class, f"org.apache.spark.deploy.{name}", *arguments]
    with Path(folder, f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()  # a worker stops its executors first
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def wait_until_open(port: int) -> None:
    """Waits until a server listens on the port."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> None:
    """Runs a cluster of two workers until Ctrl-C, and prints how to use it."""
    explain_errors()
    if missing := missing_java():
        sys.exit(to_message([missing]))
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    with standalone_cluster() as master:
        settings = {"IMAGE_ASSETS_SPARK_MASTER": master, "SPARK_LOCAL_IP": HOST}
        print("Two workers, with one core and 1 GB each. To run the graph on them, in another terminal:\n", flush=True)
        command = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"  {styled(f'{command} {PROGRAM} demo', 'strong')}\n", flush=True)
        stopped.wait()
