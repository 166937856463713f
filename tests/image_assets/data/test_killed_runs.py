"""A run that was killed anywhere is simply run again: the tables end as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest

from image_assets.data.audit import audit
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.image_folder import ImageFolder
from tests.conftest import tables_in
from tests.support.data_run import POINTS, contents, run_data
from tests.support.images import jpeg, png, put

pytestmark = pytest.mark.spark

KILLS = [("after reading", "spark"), ("before the commit", "spark"), *((point, "local") for point in POINTS)]
# Between a file and its commit are some milliseconds: on a busy machine, a kill may come after both.
BEFORE_A_COMMIT = ("after reading", "in a merge", "in a compaction")
ATTEMPTS = 5
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, delta_spark: DeltaSpark) -> Path:
    """A landing folder, and two homes that follow it: one is killed now and then, the other is not."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(6):
        put(folder, f"landing/{('ball', 'cube')[number % 2]}/{number}.png", png(number))
    for home in ("killed", "undisturbed"):
        run_data(tables_of(folder, home, delta_spark), image_folder(folder))
    return folder


def tables_of(place: Path, home: str, session: DeltaSpark) -> DeltaTables:
    return tables_in(place / home, session)


def image_folder(place: Path) -> ImageFolder:
    return ImageFolder(root=str(place / "landing"), settle_seconds=0)


def change(landing: Path, number: int) -> None:
    """Something new, something replaced, something broken, something gone."""
    put(landing, f"ball/new {number}.jpg", jpeg(100 + number))
    put(landing, f"cube/broken {number}.jpg", jpeg(200 + number)[:-300])
    put(landing, "cube/1.png", png(300 + number, size=(50 + number, 40)))
    (landing / "ball" / f"new {number - 1}.jpg").unlink(missing_ok=True)


def killed(place: Path, number: int, point: str, executor: str) -> str:
    """Change the files, kill a run at the point, and return its last line of output."""
    change(place / "landing", number)
    command = [sys.executable, "-m", "tests.support.data_run", place / "killed", place / "landing", point, executor]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, start_new_session=True, timeout=300
    )
    assert run.returncode == -9, run.stderr[-2000:]
    return "".join(run.stdout.splitlines()[-1:])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "point", "executor"), [(number, *kill) for number, kill in enumerate(KILLS)])
def test_after_a_kill_the_next_run_ends_as_an_undisturbed_one(
    place: Path, delta_spark: DeltaSpark, number: int, point: str, executor: str
) -> None:
    again, undisturbed = (tables_of(place, home, delta_spark) for home in ("killed", "undisturbed"))
    for attempt in range(ATTEMPTS):
        output = killed(place, number + 10 * attempt, point, executor)
        for tables in (again, undisturbed):  # also after a kill that came late: the next one finds both homes equal
            run_data(tables, image_folder(place))
        if output == "not committed" or point not in BEFORE_A_COMMIT:
            break
    else:
        pytest.fail(f"{ATTEMPTS} kills came after the commit")
    assert contents(again) == contents(undisturbed)
    if point == POINTS[-1]:
        assert [finding for finding in audit(again, image_folder(place)) if finding.broken] == []
