"""A Spark standalone cluster on this machine: a master, and workers of one core each."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyspark

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
# What the cluster's processes and a driver on it need: the same address, the same Python, this project's source.
CLUSTER_ENVIRONMENT = {"SPARK_LOCAL_IP": HOST, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
START_SECONDS = 60
END_SECONDS = 10


@contextmanager
def standalone_cluster(*, workers: int = 2) -> Iterator[str]:
    """The master's URL. A driver on it is a process of its own, as a process has one Spark."""
    with TemporaryDirectory(prefix="cluster") as folder, ExitStack() as running:
        port = free_port()
        arguments = ["--host", HOST, "--webui-port", "0"]
        running.enter_context(spark_process("master.Master", *arguments, "--port", str(port), folder=folder))
        wait_until_open(port)
        small = ["--cores", "1", "--memory", "1g", "--work-dir", folder, f"spark://{HOST}:{port}"]
        for _ in range(workers):
            running.enter_context(spark_process("worker.Worker", *arguments, *small, folder=folder))
        yield f"spark://{HOST}:{port}"


@contextmanager
def spark_process(name: str, *arguments: str, folder: str) -> Iterator[None]:
    """One of the cluster's processes, ended with all that it started."""
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environment = {**os.environ, **CLUSTER_ENVIRONMENT, "SPARK_DAEMON_MEMORY": "256m"}
    command = [spark_class, f"org.apache.spark.deploy.{name}", *arguments]
    with Path(folder, f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()  # a worker ends its executors first
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def wait_until_open(port: int) -> None:
    """Return once somebody listens at the port."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
