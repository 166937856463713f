"""The reference pages of the documentation, as the code has them, written into docs/reference; `make docs` runs it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from image_assets.jobs.asset_jobs import JOBS
from image_assets.jobs.launchpad_examples import EXAMPLES
from image_assets.schemas import TABLES
from resources import settings
from resources.delta.table import Table
from scripts.terminal import end_with_what_to_do

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
IF_IT_FAILS = " If it fails: "
CODE = ("image_assets", "resources", "sensors", "gallery", "scripts", "benchmarks")


def cell(said: object) -> str:
    """Text that cannot end a table's cell."""
    return " ".join(str(said).split()).replace("|", "\\|")


def rows(head: tuple[str, ...], of: Iterator[tuple[object, ...]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in of:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def settings_page() -> Iterator[str]:
    """Every environment variable."""
    yield "# Settings\n\nWhat differs between machines. All of them are environment variables.\n"
    yield from (line for line in (settings.__doc__ or "").splitlines() if line.startswith("|"))


def configs(of: type[dg.Config] = dg.Config) -> Iterator[type[dg.Config]]:
    """The run configs of this project's assets and jobs."""
    for config in of.__subclasses__():
        if config.__module__.startswith("image_assets.") and config.model_fields:
            yield config
        yield from configs(config)


def what(job: str) -> str:
    """What a job does, in a sentence."""
    from definitions import defs

    return (defs.resolve_job_def(job).description or "").partition("\n\n")[0]


def jobs_page() -> Iterator[str]:
    """Every job, every sensor, and what can be said to them."""
    from definitions import defs

    yield "# Jobs and sensors\n"
    yield from rows(("job", "what it does"), ((f"`{job.name}`", what(job.name)) for job in JOBS))
    sensors = defs.sensors or []
    yield "## Sensors\n"
    yield from rows(
        ("sensor", "what it does", "looks every"),
        ((f"`{sensor.name}`", sensor.description, f"{sensor.minimum_interval_seconds} s") for sensor in sensors),
    )
    yield "## Examples\n\nTo start from: each job's page in Dagster opens its own in the Launchpad.\n"
    for job in JOBS:
        yield f"### {job.name}\n\n```yaml\n{EXAMPLES[job.name]}```\n"
    yield "## What they take\n\nEach setting in the Launchpad, and under `ops` of a run's config.\n"
    for config in sorted(configs(), key=lambda config: config.__name__):
        name = " ".join(re.findall("[A-Z][a-z]+", config.__name__.removesuffix("Config")))
        yield f"### {name}\n\n{config.__doc__ or ''}\n"
        yield from rows(
            ("setting", "default", "what it says"),
            (
                (
                    f"`{name}`",
                    "must be said" if field.is_required() else f"`{field.get_default()!r}`",
                    field.description,
                )
                for name, field in config.model_fields.items()
            ),
        )


def assets_page() -> Iterator[str]:
    """Every asset by group, in the order of the path, and its checks."""
    from definitions import defs

    graph = defs.resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.toposorted_asset_keys]
    checks = [spec for check in defs.asset_checks or [] for spec in getattr(check, "check_specs", ())]
    yield "# Assets and checks\n"
    for group in dict.fromkeys(node.group_name for node in nodes):
        yield f"## {group}\n"
        for node in nodes:
            if node.group_name != group:
                continue
            name = node.key.to_user_string()
            parents = ", ".join(f"`{parent.to_user_string()}`" for parent in sorted(node.parent_keys))
            yield f"### {name}\n\n{node.description}\n\nMade from: {parents or 'the landing folder or the registry'}.\n"
            found = [(f"`{spec.name}`", *halves(spec)) for spec in checks if spec.asset_key == node.key]
            yield from rows(("check", "what holds", "what to do when it fails"), iter(found)) if found else ()


def halves(check: dg.AssetCheckSpec) -> tuple[str, str]:
    """What holds, and what to do when it does not, as the check's description says."""
    holds, _, remedy = (check.description or "").partition(IF_IT_FAILS)
    return holds, remedy[:1].upper() + remedy[1:]


def tables_page() -> Iterator[str]:
    """Every table with its columns."""
    yield "# Tables\n\nOrdinary Delta tables, in `tables/` of the home. Bold columns tell rows apart.\n"
    for table in TABLES:
        yield f"## {table.name}\n"
        yield from rows(("column", "type", "what it holds"), columns(table))


def columns(table: Table) -> Iterator[tuple[object, ...]]:
    """Name, type and meaning of a table's columns."""
    for field in table.columns:
        name = f"**`{field.name}`**" if field.name in table.keys else f"`{field.name}`"
        yield name, f"`{field.dataType.simpleString()}`", (field.metadata or {}).get("comment", "")


def layout_page() -> Iterator[str]:
    """Every file of the code in one line, as its docstring has it."""
    yield "# The layout\n\nWhat each file is, as its own first line says.\n"
    for folder in CODE:
        yield f"## {folder}\n"
        files = sorted((ROOT / folder).rglob("*.py"), key=lambda file: (len(file.parts) > len(ROOT.parts) + 2, file))
        said = ((file.relative_to(ROOT), ast.get_docstring(ast.parse(file.read_text()))) for file in files)
        yield from rows(("file", "what it is"), ((f"`{file}`", text.splitlines()[0]) for file, text in said if text))


def main(folder: Path = FOLDER) -> None:
    """Write the pages."""
    folder.mkdir(exist_ok=True)
    pages = {
        "settings": settings_page,
        "jobs": jobs_page,
        "assets": assets_page,
        "tables": tables_page,
        "layout": layout_page,
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text("\n".join(page()))


if __name__ == "__main__":
    end_with_what_to_do()
    main()
