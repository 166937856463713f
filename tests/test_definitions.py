"""The graph as Dagster loads it."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import dagster as dg
import pytest
from pydantic import ValidationError

from definitions import defs
from image_assets.jobs.asset_jobs import BEFORE_MODELS
from image_assets.predictions.image_filters import Filters
from image_assets.schemas import TABLES
from resources.files.image_folder import ImageFolder
from scripts.reference import configs, halves

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "torch", "horovod", "petastorm", "mlflow", "duckdb")
# asset: what it is made from
EDGES = {
    "fetched_images": [],
    "image_files": [],
    "raw_images": [],
    "replayed_files": [],
    "given_labels": ["image_files"],
    "label_corrections": [],
    "image_samples": [
        "featured_images",
        "given_labels",
        "image_files",
        "image_splits",
        "label_corrections",
        "raw_images",
    ],
    "featured_images": ["given_labels", "label_corrections", "raw_images"],
    "grayscale_images": ["featured_images", "given_labels", "label_corrections"],
    "image_splits": ["featured_images", "given_labels", "label_corrections"],
    "training_cache": ["featured_images", "grayscale_images", "image_files", "image_splits"],
    "validation_cache": ["featured_images", "grayscale_images", "image_files", "image_splits"],
    "image_embeddings": ["featured_images"],
    "tensorflow_model": ["image_embeddings", "training_cache", "validation_cache"],
    "torch_model": ["image_embeddings", "training_cache", "validation_cache"],
    "model_evaluations": ["image_splits", "tensorflow_model", "torch_model"],
    "stage_history": ["model_evaluations"],
    "backbone_comparisons": ["training_cache", "validation_cache"],
    "image_predictions": ["featured_images", "image_embeddings", "model_evaluations"],
    "current_predictions": ["image_files", "image_predictions"],
    "version_agreements": ["image_files", "image_predictions"],
    "prediction_drift": ["image_embeddings", "image_files", "image_predictions", "image_splits"],
    "prediction_alerts": ["current_predictions", "image_files", "image_predictions"],
}
GROUPS = {"data": 12, "models": 6, "predictions": 5}
CHECKS = {
    "keys_unique",
    "layout",
    "row_groups_balanced",
    "no_file_lost",
    "few_quarantined",
    "every_folder_readable",
    "one_page_each",
    "label_conflicts",
    "label_table_is_sound",
    "every_image_fetched",
    "labels_in_every_split",
    "groups_in_one_split",
    "given_splits_apart",
    "folders_give_labels",
    "labels_spelled_alike",
    "probabilities_sum_to_one",
    "same_registry",
    "every_file_predicted",
    "every_alert_sent",
    "drift_is_small",
}


def test_the_graph_is_the_recorded_one() -> None:
    graph = defs.resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    edges = {node.key.to_user_string(): sorted(key.to_user_string() for key in node.parent_keys) for node in nodes}
    assert edges == EDGES
    groups = [node.group_name for node in nodes]
    assert {group: groups.count(group) for group in set(groups)} == GROUPS
    assert {key.name for key in graph.asset_check_keys} == CHECKS
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys if key.name == "layout"}
    assert checked == {table.name for table in TABLES}


def test_every_asset_says_what_it_is() -> None:
    graph = defs.resolve_asset_graph()
    tables = {table.name for table in TABLES}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.kinds, key
        if key.to_user_string() in tables:
            assert {"dagster/uri", "dagster/column_schema"} <= set(node.metadata), key


def test_every_check_says_what_holds_and_what_to_do_when_it_does_not() -> None:
    specs = [spec for check in defs.asset_checks or [] for spec in getattr(check, "check_specs", ())]
    assert {spec.name for spec in specs} == CHECKS
    for spec in specs:
        holds, remedy = halves(spec)
        assert holds.endswith("."), spec.key
        assert remedy.endswith("."), spec.key


def test_assets_link_to_their_page_in_the_gallery() -> None:
    graph = defs.resolve_asset_graph()
    links = {key.to_user_string(): graph.get(key).metadata.get("gallery") for key in graph.get_all_asset_keys()}
    pages = {name: urlsplit(str(link.value)) for name, link in links.items() if isinstance(link, dg.UrlMetadataValue)}
    assert {"image_files", "featured_images", "label_corrections", "image_predictions"} <= set(pages)
    for page in pages.values():
        Filters.read(dict(parse_qsl(page.query)))


def test_jobs_and_sensors_are_there() -> None:
    repository = defs.get_repository_def()
    expected = {"whole_path", "ingest_images", "replay_quarantine", "train_models", "predict_images", "check_assets"}
    more = {
        "compare_backbones",
        "promote_model",
        "request_promotion",
        "review_promotion",
        "reproduce_model",
        "evaluate_version",
        "package_model",
        "export_dataset",
        "unpack_parquet",
        "optimize_tables",
        "vacuum_tables",
        "repair_tables",
        "send_alerts",
        "fetch_images",
    }
    assert expected | more <= set(repository.job_names)
    running = {sensor.name: sensor.default_status.value == "RUNNING" for sensor in repository.sensor_defs}
    assert running == {"new_images": True, "storage_events": False, "stage_changes": True, "waiting_alerts": True}


def test_every_job_waits_for_pools_without_dagsters_busy_loop() -> None:
    executors = [job.executor_def for job in defs.get_repository_def().get_all_jobs()]
    assert {executor.name for executor in executors} == {"in_process"}
    assert dg.in_process_executor not in executors
    config = {"execution": {"config": {"retries": {"disabled": {}}}}}
    dg.validate_run_config(defs.resolve_job_def("train_models"), config)


def test_only_its_own_job_compares_backbones() -> None:
    steps = {
        job: {node.name for node in defs.resolve_job_def(job).graph.nodes}
        for job in ("whole_path", "train_models", "compare_backbones")
    }
    assert [job for job, names in steps.items() if "backbone_comparisons" in names] == ["compare_backbones"]


def test_splits_that_cannot_be_trained_on_stop_trainings_and_no_ingest() -> None:
    stopping = {"image_splits_groups_in_one_split", "image_splits_labels_in_every_split"}
    steps = {
        job: {node.name for node in defs.resolve_job_def(job).graph.nodes} for job in ("train_models", "ingest_images")
    }
    assert stopping <= steps["train_models"]
    assert stopping & steps["ingest_images"] == set()
    assert "featured_images_label_conflicts" in steps["ingest_images"]


@pytest.mark.parametrize("job", ["whole_path", "check_assets"])
def test_every_check_is_evaluated(job: str) -> None:
    evaluated = defs.resolve_job_def(job).asset_layer.asset_graph.asset_check_keys
    assert evaluated == defs.resolve_asset_graph().asset_check_keys


@pytest.mark.parametrize("verb", ["optimize", "vacuum"])
def test_a_table_is_tended_under_the_pool_that_its_asset_writes_under(verb: str) -> None:
    ops = defs.resolve_job_def(f"{verb}_tables").all_node_defs
    pools = {op.name.removeprefix(f"{verb}_"): op.pool for op in ops if isinstance(op, dg.OpDefinition)}
    graph = defs.resolve_asset_graph()
    for table in TABLES:
        assert {pools[table.name]} == graph.get(dg.AssetKey(table.name)).pools, table.name


def test_what_writes_files_into_the_landing_folder_takes_turns() -> None:
    (unpacking,) = defs.resolve_job_def("unpack_parquet").all_node_defs
    assert isinstance(unpacking, dg.OpDefinition)
    assert {unpacking.pool} == defs.resolve_asset_graph().get(dg.AssetKey("fetched_images")).pools


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_setting_that_is_no_finite_number_is_an_error(number: float) -> None:
    for config in (*configs(), ImageFolder):
        for name, setting in config.model_fields.items():
            if "float" in str(setting.annotation):
                value = [number] if "list" in str(setting.annotation) else number
                with pytest.raises(ValidationError) as caught:
                    config.model_validate({name: value})
                assert (name,) in {error["loc"][:1] for error in caught.value.errors()}, config


def test_loading_imports_no_framework() -> None:
    program = f"import definitions, json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_the_workspace_loads() -> None:
    dagster = Path(sys.executable).with_name("dagster")
    command = [str(dagster), "definitions", "validate", "-w", "workspace.yaml"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_nothing_before_the_models_needs_one() -> None:
    graph = defs.resolve_asset_graph()
    before = BEFORE_MODELS.resolve(graph)
    assert BEFORE_MODELS.upstream().resolve(graph) - before <= {dg.AssetKey("fetched_images")}
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys() - before} >= {"models", "predictions"}
    assert {graph.get(key).group_name for key in before} == {"data"}
