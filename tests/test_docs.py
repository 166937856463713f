"""What the documentation tells a person to do can be done."""

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from definitions import defs
from image_assets.jobs.asset_jobs import JOBS
from scripts import reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
COMMANDS = sorted(
    {command for text in TEXTS.values() for command in re.findall(r"^make ([a-z0-9-]+)", text, re.MULTILINE)}
)
CONFIGS = [
    (page, block)
    for page, text in TEXTS.items()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    if re.match("ops:|execution:|dry_run:", block)
]


def test_the_readme_names_the_commands_to_learn() -> None:
    assert {"demo", "dev", "test", "check-data"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_of_make(command: str) -> None:
    answer = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_menu_has_every_page_once_and_the_index_links_to_it() -> None:
    menu = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("nav:")[2])
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    written = [page for page in pages if not page.startswith("reference/")]  # those are generated
    links = re.findall(r"\]\(([\w/]+\.md)\)", TEXTS["docs/index.md"])
    assert sorted(page for page in menu if not page.startswith("reference/")) == sorted(written)
    assert sorted(links) == sorted(page for page in menu if page != "index.md")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "deploy/README.md"])
def test_links_outside_the_site_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    files = [link for link in links if "://" not in link]
    assert files
    assert [link for link in files if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", sorted(page for page in TEXTS if "/reference/" not in page))
def test_files_that_pages_name_exist(page: str) -> None:
    names = re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|yaml|json|md|txt))?)`", TEXTS[page])
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    ours = [name for name in names if name.partition("/")[0] in folders]
    assert [name for name in ours if not (ROOT / name).exists()] == []


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {name for text in TEXTS.values() for name in re.findall(r"pictures/(\w+\.\w+)\)", text)}
    assert {picture.name for picture in (ROOT / "docs" / "pictures").iterdir()} == shown


def test_the_pages_have_run_configs() -> None:
    assert len(CONFIGS) >= 7


@pytest.mark.parametrize(("page", "config"), CONFIGS)
def test_each_run_config_is_one_that_a_job_takes(page: str, config: str) -> None:
    refused = []
    for job in JOBS:
        try:
            dg.validate_run_config(defs.resolve_job_def(job.name), yaml.safe_load(config))
        except dg.DagsterInvalidConfigError as error:
            refused.append(f"{job.name}: {error}"[:300])
    assert len(refused) < len(JOBS), "\n".join(refused)


def test_the_site_builds_and_its_reference_has_every_column_setting_and_job() -> None:
    reference.main()
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    pages = {page.parent.name: page.read_text() for page in (ROOT / "build" / "site" / "reference").rglob("*.html")}
    assert "IMAGE_ASSETS_LANDING" in pages["settings"]
    assert all(job.name in pages["jobs"] for job in JOBS)
    columns = {field.name for table in reference.TABLES for field in table.columns}
    assert [column for column in columns if column not in pages["tables"]] == []
    assert "image_predictions" in pages["assets"]
    assert "probabilities_sum_to_one" in pages["assets"]
