"""Is the set-up well? Each part is tried for real, in a process of its own; a table says what was found.

`python -m scripts.doctor` tries everything; names after it (`java landing`) only these.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from scripts import machine_checks, service_checks
from scripts.machine_checks import Check, Finding
from scripts.terminal import Look, emphasized

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 90  # for one check: what hangs is not well
LOOKS: dict[str, Look] = {"ok": "good", "failed": "bad"}
ONE = "--one"  # what this program calls itself with, for one check
CHECKS = {
    "python": Check(machine_checks.python, "make install"),
    "java": Check(machine_checks.java, "install OpenJDK 17 or 21, or let JAVA_HOME name one"),
    "compiler": Check(machine_checks.compiler, "install g++ and python3.11-dev"),
    "delta jars": Check(machine_checks.delta_jars, ".venv/bin/python -m scripts.jars"),
    "horovod torch": Check(
        lambda: service_checks.horovod(service_checks.torch_sum), "rm .venv/installed, then make install"
    ),
    "horovod tensorflow": Check(
        lambda: service_checks.horovod(service_checks.tensorflow_sum), "rm .venv/installed, then make install"
    ),
    "spark and delta": Check(
        service_checks.spark, "check java and delta jars above; unset SPARK_HOME and SPARK_CONF_DIR"
    ),
    "petastorm": Check(service_checks.petastorm, "rm .venv/installed, then make install"),
    "memory": Check(machine_checks.memory, "use a machine with more memory, or set IMAGE_ASSETS_PROCESSES=1"),
    "gpu": Check(machine_checks.gpu, "check the driver; CUDA_VISIBLE_DEVICES= leaves the GPU out"),
    "open files": Check(machine_checks.open_files, "ulimit -n 4096 in this shell, or nofile in limits.conf"),
    "clock": Check(machine_checks.clock, "set the clock, and let NTP keep it, here and on the file server"),
    "home": Check(machine_checks.home, "make it writable, or let IMAGE_ASSETS_HOME name another folder"),
    "locks": Check(machine_checks.locks, "let IMAGE_ASSETS_HOME and IMAGE_ASSETS_CACHES name folders on local disks"),
    "temporary files": Check(machine_checks.temporary_files, "make room there, or let TMPDIR name another folder"),
    "ports": Check(machine_checks.ports, "end what uses it, or name others: make dev DAGSTER_PORT=3001 …"),
    "landing": Check(service_checks.landing, "let IMAGE_ASSETS_LANDING name a folder of images"),
    "mlflow store": Check(service_checks.mlflow_store, "check MLFLOW_TRACKING_URI and the account; docs/governance.md"),
    "dagster database": Check(service_checks.dagster_database, "start it, or correct IMAGE_ASSETS_DAGSTER_DATABASE"),
    "s3": Check(service_checks.s3, "make s3; check AWS_ENDPOINT_URL, AWS_REGION, the credentials and the bucket"),
    "spark master": Check(
        service_checks.spark_master, "start it (make cluster), or leave IMAGE_ASSETS_SPARK_MASTER out"
    ),
    "alerts": Check(service_checks.alerts, "docs/alerts.md has the rules and the addresses"),
    "chromium": Check(machine_checks.chromium, "apt install chromium"),
    "postgresql": Check(machine_checks.postgresql, "apt install postgresql"),
}


def examine(name: str) -> Finding:
    """The check's finding, whatever becomes of its process."""
    command = [sys.executable, "-W", "ignore", "-m", "scripts.doctor", ONE, name]
    try:
        answer = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("failed", f"no answer within {SECONDS} s")
    if answer.returncode == 0:
        return Finding(**json.loads(answer.stdout.splitlines()[-1]))
    return Finding("failed", cause(answer.stderr) or f"its process ended with code {answer.returncode}")


def cause(said: str) -> str:
    """The line that tells most: the last error, but not Horovod's that some rank had one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "exited with non-zero status" not in line]
    return (errors or lines or [""])[-1]


def show(name: str, finding: Finding) -> None:
    """One row of the table."""
    remedy = f"  ->  {emphasized(CHECKS[name].remedy, 'strong')}" if finding.state == "failed" else ""
    state = emphasized(f"{finding.state:<8}", LOOKS[finding.state]) if finding.state in LOOKS else f"{finding.state:<8}"
    print(f"{name:<20}{state}{finding.detail}{remedy}", flush=True)


def main(names: Sequence[str]) -> int:
    """The table; 1 when anything failed."""
    print(f"{'check':<20}{'state':<8}detail  ->  remedy", flush=True)
    failed = 0
    # Two at a time: most of the time goes into imports, on one core each.
    with ThreadPoolExecutor(2) as pool:
        for name, finding in zip(names, pool.map(examine, names), strict=True):
            show(name, finding)
            failed += finding.state == "failed"
    print(f"{failed} failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked[:1] == [ONE]:
        print(json.dumps(asdict(CHECKS[asked[1]].try_it())))
    elif unknown := [name for name in asked if name not in CHECKS]:
        sys.exit(f"no check named {', '.join(unknown)}: expected some of {', '.join(CHECKS)}")
    else:
        sys.exit(main(asked or list(CHECKS)))
