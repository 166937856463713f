"""Two read-only checks of the tables: asset checks (fast, for CI) and an audit that reads every file and row."""

from collections.abc import Mapping

import dagster as dg

from resources.delta.unchanged import INPUTS
from scripts.home import hide_library_messages, open_home
from scripts.runs import print_failures, run_job
from scripts.terminal import PROGRAM, Style, printable, styled, table

STYLES: dict[str, Style] = {"ERROR": "bad", "WARN": "warning"}
REMEDY = (
    f"Run `{PROGRAM} demo` or the job ingest_images to process changes in the landing folder. If tables, rows or files "
    "are missing or broken, launch the job repair_tables first: it restores them as far as anything has a copy, and "
    "says what nothing can restore, such as corrections made by people, the stage history and alerts already sent."
)


def check_data() -> int:
    """Evaluates every asset check on the current tables; 1 if an ERROR check fails or cannot be evaluated."""
    open_home()
    hide_library_messages()
    result = run_job("check_assets")
    checks = result.get_asset_check_evaluations()
    rows = [
        (
            "passed" if check.passed else check.severity.value,
            f"{check.asset_key.to_user_string()}.{check.check_name}",
            figures(check.metadata),
            check.description or "",
        )
        for check in checks
    ]
    print("\n" + table("Asset checks", rows, STYLES))
    if not result.success:
        print_failures(result)
    errors = [check for check in checks if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR]
    return 1 if errors or not result.success else 0


def figures(metadata: Mapping[str, dg.MetadataValue]) -> str:
    """A check's metadata in one line: tables, which are for the UI, only as their number of rows, if they have any."""
    texts = []
    for name, value in metadata.items():
        if name == INPUTS:  # a digest
            continue
        if not isinstance(value, dg.TableMetadataValue):
            texts.append(f"{name} {value.value}")
        elif value.records:
            texts.append(f"{name} {len(value.records)}")
    return ", ".join(texts)


def audit() -> int:
    """Compares every table with the landing folder and with the tables it was made from; 1 if a rule is broken."""
    open_home()
    hide_library_messages()
    from definitions import resources
    from image_assets.data import audit as rules

    broken = total = 0
    with dg.build_resources(resources) as opened:
        for finding in rules.audit(opened.delta_tables, opened.image_folder, print):
            total += 1
            broken += bool(finding.broken)
            state = styled(f"{'broken':<8}", "bad") if finding.broken else f"{'ok':<8}"
            count = f"{finding.broken:>8,}  " if finding.broken else " " * 10
            print(state, count, finding.rule, sep="")
            print(*(f"{'':<18}{printable(example)}\n" for example in finding.examples), sep="", end="", flush=True)
    if broken:
        print(f"\n{broken} of {total} rules are broken. {REMEDY}")
    else:
        print(f"\nAll {total} rules hold.")
    return 1 if broken else 0
