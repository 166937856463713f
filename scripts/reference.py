"""The reference pages of the documentation, generated from the code into docs/reference."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import dagster as dg

from image_assets.jobs.asset_jobs import JOBS
from image_assets.jobs.launchpad_examples import EXAMPLES
from image_assets.schemas import TABLES
from resources import settings
from resources.delta.table import Table
from scripts.accepted import SECTIONS
from scripts.terminal import ROOT

FOLDER = ROOT / "docs" / "reference"
IF_IT_FAILS = " If it fails: "
CODE = ("image_assets", "resources", "sensors", "gallery", "scripts", "benchmarks")


def cell(content: object) -> str:
    """The content as text that fits into a cell of a Markdown table."""
    return " ".join(str(content).split()).replace("|", "\\|")


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def settings_page() -> Iterator[str]:
    """Every environment variable."""
    yield "# Settings\n\nEverything that differs between machines. All settings are environment variables.\n"
    yield from (line for line in (settings.__doc__ or "").splitlines() if line.startswith("|"))


def configs(parent: type[dg.Config] = dg.Config) -> Iterator[type[dg.Config]]:
    """The run configs of this project's assets and jobs."""
    for config in parent.__subclasses__():
        if config.__module__.startswith("image_assets.") and config.model_fields:
            yield config
        yield from configs(config)


def job_summary(job: str) -> str:
    """The first sentence of a job's description."""
    from definitions import defs

    return (defs.resolve_job_def(job).description or "").partition("\n\n")[0]


def jobs_page() -> Iterator[str]:
    """Every job and sensor, with examples and all settings of a run."""
    from definitions import defs

    yield "# Jobs and sensors\n"
    yield from markdown_table(("job", "what it does"), ((f"`{job.name}`", job_summary(job.name)) for job in JOBS))
    sensors = defs.sensors or []
    yield "## Sensors\n"
    yield from markdown_table(
        ("sensor", "what it does", "interval"),
        ((f"`{sensor.name}`", sensor.description, f"{sensor.minimum_interval_seconds} s") for sensor in sensors),
    )
    yield "## Examples\n\nEach job's Launchpad in Dagster opens with its example.\n"
    for job in JOBS:
        yield f"### {job.name}\n\n```yaml\n{EXAMPLES[job.name]}```\n"
    yield "## Run settings\n\nWhat you can set in the Launchpad, or under `ops` in a run config.\n"
    for config in sorted(configs(), key=lambda config: config.__name__):
        name = " ".join(re.findall("[A-Z][a-z]+", config.__name__.removesuffix("Config")))
        yield f"### {name}\n\n{config.__doc__ or ''}\n"
        yield from markdown_table(
            ("setting", "default", "description"),
            (
                (
                    f"`{name}`",
                    "required" if field.is_required() else f"`{field.get_default()!r}`",
                    field.description,
                )
                for name, field in config.model_fields.items()
            ),
        )


def assets_page() -> Iterator[str]:
    """Every asset with its checks, by group, in the order of the data's path."""
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
            sources = parents or "the landing folder or the model registry"
            yield f"### {name}\n\n{node.description}\n\nMade from: {sources}.\n"
            found = [(f"`{spec.name}`", *halves(spec)) for spec in checks if spec.asset_key == node.key]
            yield from markdown_table(("check", "what it checks", "if it fails"), found) if found else ()


def halves(check: dg.AssetCheckSpec) -> tuple[str, str]:
    """The two parts of a check's description: what it checks, and what to do if it fails."""
    rule, _, remedy = (check.description or "").partition(IF_IT_FAILS)
    return rule, remedy[:1].upper() + remedy[1:]


def tables_page() -> Iterator[str]:
    """Every table with its columns."""
    yield "# Tables\n\nOrdinary Delta tables in the home's folder `tables/`. Key columns are bold.\n"
    for table in TABLES:
        yield f"## {table.name}\n"
        yield from markdown_table(("column", "type", "content"), columns(table))


def columns(table: Table) -> Iterator[tuple[object, ...]]:
    """Name, type and meaning of a table's columns."""
    for field in table.columns:
        name = f"**`{field.name}`**" if field.name in table.keys else f"`{field.name}`"
        yield name, f"`{field.dataType.simpleString()}`", (field.metadata or {}).get("comment", "")


def accepted_page() -> Iterator[str]:
    """Every kind of input, and what is done with it."""
    yield "# What is accepted\n\nWhat people have, and what is done with it. Each line has a test.\n"
    for section, cases in SECTIONS.items():
        yield f"## {section}\n"
        yield from markdown_table(("what you have", "what is done"), ((case.found, case.outcome) for case in cases))


def layout_page() -> Iterator[str]:
    """Every source file with the first line of its docstring."""
    yield "# Source files\n\nEvery source file with the first line of its docstring.\n"
    for folder in CODE:
        yield f"## {folder}\n"
        files = sorted((ROOT / folder).rglob("*.py"), key=lambda file: (len(file.parts) > len(ROOT.parts) + 2, file))
        docstrings = ((file.relative_to(ROOT), ast.get_docstring(ast.parse(file.read_text()))) for file in files)
        yield from markdown_table(
            ("file", "what it is"), ((f"`{file}`", text.splitlines()[0]) for file, text in docstrings if text)
        )


def main(folder: Path = FOLDER) -> None:
    """Writes the pages."""
    folder.mkdir(exist_ok=True)
    pages = {
        "accepted": accepted_page,
        "settings": settings_page,
        "jobs": jobs_page,
        "assets": assets_page,
        "tables": tables_page,
        "layout": layout_page,
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text("\n".join(page()))
