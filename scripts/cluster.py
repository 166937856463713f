"""A Spark standalone cluster on this machine: a master, and workers; Ctrl-C ends all of it."""

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
from scripts.terminal import emphasized, end_with_what_to_do

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
# What the cluster's processes and a driver on it need: the same address, the same Python, this project's source.
CLUSTER_ENVIRONMENT = {"SPARK_LOCAL_IP": HOST, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
KEPT = ("PATH", "JAVA_HOME", "HOME", "TMPDIR")  # all else that a process of the cluster knows, a driver tells it
START_SECONDS = 60
END_SECONDS = 10


@contextmanager
def standalone_cluster(*, workers: int = 2, memory: str = "1g") -> Iterator[str]:
    """The master's URL; the workers have one core each. A driver on it is a process of its own: one has one Spark."""
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
    """One of the cluster's processes, ended with all that it started; it knows as little as on a machine of its own."""
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    kept = {variable: os.environ[variable] for variable in KEPT if variable in os.environ}
    environment = {**kept, **CLUSTER_ENVIRONMENT, "SPARK_DAEMON_MEMORY": "256m"}
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


def main() -> None:
    """Two workers, until somebody ends them."""
    end_with_what_to_do()
    if missing := missing_java():
        sys.exit(to_message([missing]))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with standalone_cluster() as master:
        told = {"IMAGE_ASSETS_SPARK_MASTER": master, "SPARK_LOCAL_IP": HOST}
        print("Two workers of one core and 1 GB each. To run the graph there, in another terminal:\n", flush=True)
        command = " ".join(f"{name}={value}" for name, value in told.items())
        print(f"  {emphasized(f'{command} make demo', 'strong')}\n", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
