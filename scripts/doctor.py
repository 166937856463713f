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

from scripts.emphasis import Look, emphasized
from scripts.health_checks import CHECKS, Finding

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 90  # for one check: what hangs is not well
LOOKS: dict[str, Look] = {"ok": "good", "failed": "bad"}
ONE = "--one"  # what this program calls itself with, for one check


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
