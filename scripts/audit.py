"""Is every table true to the landing folder? Every file and every row is read; nothing is changed."""

import sys

import dagster as dg

from scripts.emphasis import emphasized
from scripts.home import prepared_home, quiet


def main() -> int:
    """Print every rule and what it came to; 1 when one is broken."""
    prepared_home()
    quiet()
    from definitions import resources
    from image_assets.data.audit import audit

    broken = 0
    with dg.build_resources(resources) as ready:
        for finding in audit(ready.delta_tables, ready.image_folder):
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
    sys.exit(main())
