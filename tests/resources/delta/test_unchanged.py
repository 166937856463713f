"""Metadata and check results are shown again only while their inputs are the same."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake

from image_assets.images.charts import picture_markdown
from resources.delta.delta_tables import DeltaTables
from resources.delta.unchanged import INPUTS, RECOMPUTE, describe_once, has_passed, table_check
from resources.pictures import linked
from tests.support.images import png
from tests.support.tables import SHELLS, add, shell, tables_at

Run = Callable[..., dg.ExecuteInProcessResult]


class Counted:
    """How often the asset and the check below computed something, and what they depend on beside the table."""

    def __init__(self) -> None:
        self.described = self.checked = 0
        self.value = "a setting"
        self.passes, self.found_passed = True, False


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def delta_tables(tmp_path: Path) -> DeltaTables:
    tables = tables_at(tmp_path / "tables")
    add(tables, shell("cowrie"))
    return DeltaTables(**{**dict(tables), "home": str(tmp_path)})


@pytest.fixture
def run(tmp_path: Path, counted: Counted, delta_tables: DeltaTables) -> Run:
    """Materializes and checks an asset in the home's own Dagster instance."""

    @dg.asset
    def shells(delta_tables: DeltaTables) -> dg.MaterializeResult:
        def describe() -> dict[str, dg.MetadataValue]:
            counted.described += 1
            return {"number": dg.MetadataValue.int(counted.described), "picture": picture}

        picture = dg.MetadataValue.md(picture_markdown(png(1), "a shell"))
        return dg.MaterializeResult(
            metadata=describe_once(delta_tables, "shells", describe, tables=[SHELLS], values=[counted.value])
        )

    @table_check(asset="shells", reads=[SHELLS], description="Whether shells are fine.", blocking=True)
    def fine(delta_tables: DeltaTables) -> dg.AssetCheckResult:
        counted.checked += 1
        return dg.AssetCheckResult(passed=counted.passes, metadata={"evaluation": counted.checked})

    @dg.asset(deps=[shells])
    def necklaces(delta_tables: DeltaTables) -> None:
        counted.found_passed = has_passed(delta_tables, "shells", "fine", [SHELLS])

    defs = dg.Definitions([shells, necklaces], asset_checks=[fine], resources={"delta_tables": delta_tables})
    jobs = dg.Definitions.merge(
        defs,
        dg.Definitions(
            jobs=[
                dg.define_asset_job("everything"),
                dg.define_asset_job("necklaces", "necklaces"),
                dg.define_asset_job("checks", dg.AssetSelection.all_asset_checks(), tags={RECOMPUTE: "true"}),
            ]
        ),
    )
    (tmp_path / "dagster").mkdir()

    def execute(job: str = "everything", **options: object) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
            return jobs.resolve_job_def(job).execute_in_process(instance=instance, **options)

    return execute


def described(result: dg.ExecuteInProcessResult) -> dict[str, dg.MetadataValue]:
    (event,) = (
        event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey("shells")
    )
    return dict(event.step_materialization_data.materialization.metadata)


def test_unchanged_inputs_show_the_same_again(run: Run, counted: Counted) -> None:
    first, second = run(), run()
    assert (counted.described, counted.checked) == (1, 1)
    assert described(first) == described(second)
    (before,), (after,) = first.get_asset_check_evaluations(), second.get_asset_check_evaluations()
    assert after.passed
    assert after.metadata == before.metadata


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tables, _: add(tables, shell("whelk")), id="a commit"),
        pytest.param(lambda _, counted: setattr(counted, "value", "another"), id="another setting"),
    ],
)
def test_changed_inputs_are_described_again(
    run: Run, counted: Counted, delta_tables: DeltaTables, change: Callable[[DeltaTables, Counted], object]
) -> None:
    run()
    change(delta_tables, counted)
    assert described(run())["number"] == dg.MetadataValue.int(2)


def test_a_recreated_table_with_the_same_version_is_another_input(
    run: Run, counted: Counted, delta_tables: DeltaTables
) -> None:
    run()
    uri = delta_tables.uri(SHELLS)
    version, rows = DeltaTable(uri).version(), DeltaTable(uri).to_pyarrow_table()
    for file in (Path(uri) / "_delta_log").iterdir():
        file.unlink()
    write_deltalake(uri, rows.schema.empty_table())
    write_deltalake(uri, rows, mode="append")
    assert DeltaTable(uri).version() == version
    run()
    assert (counted.described, counted.checked) == (2, 2)


def test_a_deleted_picture_is_drawn_again(run: Run, tmp_path: Path, counted: Counted) -> None:
    metadata = described(run())
    (name,) = linked(metadata)
    picture = tmp_path / "pictures" / name
    assert picture.read_bytes() == png(1)
    picture.unlink()
    run()
    assert counted.described == 2
    assert picture.is_file()


def test_an_asset_can_tell_that_a_check_has_passed_on_the_same_table(
    run: Run, counted: Counted, delta_tables: DeltaTables
) -> None:
    run("necklaces")
    assert not counted.found_passed, "it never ran"
    run()
    assert counted.found_passed, "in the same run"
    counted.found_passed = False
    run("necklaces")
    assert counted.found_passed, "in an earlier run"
    run("necklaces", tags={RECOMPUTE: "true"})
    assert not counted.found_passed, "everything is to be computed again"
    add(delta_tables, shell("whelk"))
    run("necklaces")
    assert not counted.found_passed, "the table has changed"


def test_a_failed_check_is_evaluated_again(run: Run, counted: Counted) -> None:
    counted.passes = False
    run(raise_on_error=False)
    counted.passes = True
    (check,) = run().get_asset_check_evaluations()
    assert check.passed
    assert counted.checked == 2


@pytest.mark.parametrize(
    ("job", "options"),
    [("checks", {}), ("everything", {"tags": {RECOMPUTE: "true"}})],
)
def test_everything_can_be_computed_again(run: Run, counted: Counted, job: str, options: dict[str, object]) -> None:
    run()
    run(job, **options)
    assert counted.checked == 2
    assert counted.described == (1 if job == "checks" else 2)


def test_an_instance_outside_the_home_gets_embedded_pictures(
    tmp_path: Path, counted: Counted, delta_tables: DeltaTables
) -> None:
    picture = {"picture": dg.MetadataValue.md(picture_markdown(png(1), "a shell"))}

    @dg.asset
    def shells(delta_tables: DeltaTables) -> dg.MaterializeResult:
        metadata = describe_once(delta_tables, "shells", lambda: picture, tables=[SHELLS])
        return dg.MaterializeResult(metadata=metadata)

    result = dg.materialize([shells], resources={"delta_tables": delta_tables})
    (made,) = result.asset_materializations_for_node("shells")
    assert made.metadata["picture"] == picture["picture"]
    assert INPUTS in made.metadata
    assert not (tmp_path / "pictures").exists()
