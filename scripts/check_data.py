"""Every asset check on the tables as they are, for a CI: nothing is materialized."""

import sys

import dagster as dg

from scripts.demo import ON_TERMINAL, table, tell_failures, terminal
from scripts.emphasis import Look, emphasized
from scripts.home import prepared_home, quiet
from scripts.lost_runs import end_lost_runs, process_tags

LOOKS: dict[dg.AssetCheckSeverity, Look] = {dg.AssetCheckSeverity.ERROR: "bad", dg.AssetCheckSeverity.WARN: "warning"}


def main() -> int:
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


if __name__ == "__main__":
    sys.exit(main())
