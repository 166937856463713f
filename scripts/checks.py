"""Two looks at the tables as they are, for a person and for a CI: nothing is materialized, nothing is changed."""

import sys

import dagster as dg

from scripts.home import prepared_home, quiet
from scripts.runs import ON_TERMINAL, end_lost_runs, process_tags, tell_failures, terminal
from scripts.terminal import Look, emphasized, table

LOOKS: dict[dg.AssetCheckSeverity, Look] = {dg.AssetCheckSeverity.ERROR: "bad", dg.AssetCheckSeverity.WARN: "warning"}


def check_data() -> int:
    """Evaluate all checks; 1 when one of severity ERROR does not pass, or cannot be evaluated."""
    prepared_home()
    quiet()
    from definitions import defs

    job = dg.Definitions.merge(defs, dg.Definitions(loggers={"console": terminal})).resolve_job_def("check_assets")
    with dg.DagsterInstance.get() as instance:
        end_lost_runs(instance)
        result = job.execute_in_process(
            instance=instance, run_config=ON_TERMINAL, tags=process_tags(), raise_on_error=False
        )
        checks = result.get_asset_check_evaluations()
        rows = [
            (
                "passed" if check.passed else emphasized(check.severity.value, LOOKS[check.severity]),
                f"{check.asset_key.to_user_string()}.{check.check_name}",
                ", ".join(f"{name} {value.value}" for name, value in check.metadata.items()),
                check.description or "",
            )
            for check in checks
        ]
    print("\n" + table("Asset checks", rows))
    if not result.success:
        tell_failures(result)
    errors = [check for check in checks if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR]
    return 1 if errors or not result.success else 0


def audit() -> int:
    """Print every rule and what it came to; 1 when one is broken."""
    prepared_home()
    quiet()
    from definitions import resources
    from image_assets.data import audit as rules

    broken = 0
    with dg.build_resources(resources) as ready:
        for finding in rules.audit(ready.delta_tables, ready.image_folder):
            broken += bool(finding.broken)
            said = f"{f'broken by {finding.broken:,}' if finding.broken else 'kept':<14}"
            print(
                emphasized(said, "bad") if finding.broken else said,
                finding.rule,
                *(f"\n{'':<15}{example}" for example in finding.examples),
                flush=True,
            )
    print(
        f"\n{broken} rules are broken: `make demo`, or a run of ingest_images, takes in what changed"
        if broken
        else "\nEvery rule is kept."
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit({"check-data": check_data, "audit": audit}[sys.argv[1]]())
