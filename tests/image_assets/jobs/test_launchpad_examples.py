"""Each job's example is a valid run config, and the Launchpad link contains all of it."""

from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml

from definitions import defs
from image_assets.jobs.asset_jobs import JOBS
from image_assets.jobs.launchpad_examples import EXAMPLES, launchpad_url

NAMES = [job.name for job in JOBS]


def test_every_job_has_an_example() -> None:
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("job", NAMES)
def test_the_example_is_a_valid_run_config_in_the_description(job: str) -> None:
    definition = defs.resolve_job_def(job)
    dg.validate_run_config(definition, yaml.safe_load(EXAMPLES[job]))
    assert f"```yaml\n{EXAMPLES[job]}```" in str(definition.description)
    assert launchpad_url(job) in str(definition.description)


@pytest.mark.parametrize("job", NAMES)
def test_the_link_opens_the_job_with_its_example(job: str) -> None:
    link = urlsplit(launchpad_url(job))
    assert link.path == f"/locations/definitions/jobs/{job}/playground/setup"
    assert parse_qs(link.query)["config"] == [EXAMPLES[job]]
    assert not set(link.query) & set("() ")  # they would end a link in Markdown
