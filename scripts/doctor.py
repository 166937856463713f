"""Tests each part of the setup for real, each in its own process, and prints what was found and how to fix it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

from image_assets.models.frameworks import FRAMEWORKS
from scripts import jars, machine_checks, service_checks
from scripts.machine_checks import Check, Finding
from scripts.terminal import PROGRAM, ROOT, Style, printable, styled

TIMEOUT_SECONDS = 240  # for one check; a training step takes 30 s, and several times as long on a busy machine
STYLES: dict[str, Style] = {"ok": "good", "warning": "warning", "failed": "bad"}
REINSTALL = "rm -r .venv, then make install" if PROGRAM == "make" else "reinstall image-assets"
WHEEL = f"{shlex.quote(str(jars.cache_folder()))}/horovod-*"
REBUILD = f"rm -r .venv {WHEEL}, then make install" if PROGRAM == "make" else f"rm -r {WHEEL}, then image-assets setup"
CHECKS = {
    "python": Check(machine_checks.python, "make install" if PROGRAM == "make" else "reinstall image-assets"),
    "java": Check(machine_checks.java, "install OpenJDK 17 or 21, or point JAVA_HOME at one"),
    "compiler": Check(machine_checks.compiler, "install g++, make and python3.11-dev"),
    "delta jars": Check(machine_checks.delta_jars, f"{sys.prefix}/bin/image-assets setup"),
    **{f"horovod {name}": Check(partial(service_checks.training_step, name), REBUILD) for name in FRAMEWORKS},
    "spark and delta": Check(
        service_checks.spark, "check java and delta jars above; unset SPARK_HOME and SPARK_CONF_DIR"
    ),
    "petastorm": Check(service_checks.petastorm, REINSTALL),
    "memory": Check(machine_checks.memory, "use a machine with more memory, or set IMAGE_ASSETS_PROCESSES=1"),
    "gpu": Check(machine_checks.gpu, "check the driver, or set CUDA_VISIBLE_DEVICES= to run without the GPU"),
    "open files": Check(machine_checks.open_files, "ulimit -n 4096 in this shell, or nofile in limits.conf"),
    "clock": Check(machine_checks.clock, "set the clock and enable NTP, here and on the file server"),
    "home": Check(machine_checks.home, "make it writable, or set IMAGE_ASSETS_HOME to another folder"),
    "locks": Check(machine_checks.locks, "put IMAGE_ASSETS_HOME and IMAGE_ASSETS_CACHES on local disks"),
    "temporary files": Check(machine_checks.temporary_files, "free space there, or set TMPDIR to another folder"),
    "ports": Check(machine_checks.ports, f"stop the program, or use another port: DAGSTER_PORT=3001 … {PROGRAM} dev"),
    "landing": Check(service_checks.landing, "set IMAGE_ASSETS_LANDING to a folder of images"),
    "label table": Check(
        service_checks.labels, "correct IMAGE_ASSETS_LABELS or the table: docs/how_to/labels_from_a_table.md"
    ),
    "home tables": Check(
        service_checks.tables, "launch the job repair_tables, or restore the home: docs/how_to/restore.md"
    ),
    "home databases": Check(
        service_checks.databases, "restore the file from a backup, or move it away: docs/how_to/restore.md"
    ),
    "mlflow store": Check(
        service_checks.mlflow_store, "check MLFLOW_TRACKING_URI and the account; see docs/governance.md"
    ),
    "web pages": Check(
        service_checks.web_pages,
        f"start Dagster and the gallery with `{PROGRAM} dev`; start MLflow with --allowed-hosts and without "
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE",
    ),
    "dagster database": Check(service_checks.dagster_database, "start it, or correct IMAGE_ASSETS_DAGSTER_DATABASE"),
    "s3": Check(
        service_checks.s3,
        f"{PROGRAM} s3; check AWS_ENDPOINT_URL, AWS_REGION, the credentials and the bucket",
    ),
    "spark master": Check(
        service_checks.spark_master, f"start it ({PROGRAM} cluster), or unset IMAGE_ASSETS_SPARK_MASTER"
    ),
    "alerts": Check(service_checks.alerts, "see docs/alerts.md for rules and addresses"),
    "chromium": Check(machine_checks.chromium, "apt install chromium"),
    "postgresql": Check(machine_checks.postgresql, "apt install postgresql"),
}


def main(names: Sequence[str]) -> int:
    """Prints a table of the named checks, all by default; 1 if any failed."""
    names = names or list(CHECKS)
    print(f"{'check':<20}{'state':<9}details  ->  remedy", flush=True)
    failed = 0
    # Two at a time: most of the time goes into imports, which use one core each.
    with ThreadPoolExecutor(2) as pool:
        for name, finding in zip(names, pool.map(run_check, names), strict=True):
            print(to_line(name, finding), flush=True)
            failed += finding.state == "failed"
    print(f"\n{failed} of {len(names)} checks failed." if failed else "\nNo check failed.")
    return 1 if failed else 0


def run_check(name: str) -> Finding:
    """Runs the check in its own process, which may crash or hang without consequences."""
    command = [sys.executable, "-W", "ignore", "-m", "scripts.doctor", name]
    # As for the services of `dev`: settings may be relative to the current folder, but no module is imported from it.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("failed", f"timed out after {TIMEOUT_SECONDS} s")
    if process.returncode == 0:
        return Finding(**json.loads(process.stdout.splitlines()[-1]))
    return Finding("failed", last_error(process.stderr) or f"its process exited with code {process.returncode}")


def last_error(output: str) -> str:
    """The line that explains most: the last error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [""])[-1]


def to_line(name: str, finding: Finding) -> str:
    """One row of the table."""
    state = f"{finding.state:<9}"
    if finding.state in STYLES:
        state = styled(state, STYLES[finding.state])
    remedy = f"  ->  {styled(CHECKS[name].remedy, 'strong')}" if finding.state == "failed" else ""
    return f"{name:<20}{state}{printable(finding.detail)}{remedy}"


if __name__ == "__main__":
    print(json.dumps(asdict(CHECKS[sys.argv[1]].run())))
