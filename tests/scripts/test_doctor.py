"""The doctor reports what works and how to fix what does not: the command with a few checks, and each check."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest

from image_assets.models.frameworks import FRAMEWORKS
from image_assets.schemas import IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES
from scripts import jars
from scripts.cluster import HOST, free_port
from scripts.doctor import CHECKS, last_error, to_line
from scripts.horovod_wheel import wheel_folder
from scripts.machine_checks import Finding, is_for_gpus
from scripts.service_checks import to_finding
from tests.support.images import png, put
from tests.support.mlflow_server import ADMINISTRATOR, MlflowServer, log_in, password_of
from tests.support.postgres_server import PASSWORD, postgres_server, programs
from tests.support.receivers import Quiet, serving
from tests.support.s3_server import BUCKET, SECRET, s3_server
from tests.support.tables import tables_at

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
needs_s3_jars = pytest.mark.skipif(
    bool(jars.list_missing(jars.spark_home() / "jars", jars.S3)), reason="no jars for S3: make s3"
)
needs_postgres = pytest.mark.skipif(programs() is None, reason="no PostgreSQL: apt install postgresql")


def doctor(
    *names: str, folder: Path = ROOT, before: Callable[[], object] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command, with checks in processes of their own."""
    return subprocess.run(
        [sys.executable, "-m", "scripts", "doctor", *names],
        cwd=folder,
        env={**os.environ, **variables},
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_works_is_ok_and_the_exit_code_is_0() -> None:
    answer = doctor("python", "delta jars")
    rows = answer.stdout.splitlines()
    assert rows[1].split()[:2] == ["python", "ok"]
    assert rows[2].split()[:3] == ["delta", "jars", "ok"]
    assert "->" not in answer.stdout.partition("\n")[2]
    assert answer.returncode == 0


def test_a_failed_part_is_shown_with_its_remedy_beside_the_others() -> None:
    answer = doctor("java", "compiler", JAVA_HOME="/nowhere")
    rows = answer.stdout.splitlines()
    assert rows[1].split()[:2] == ["java", "failed"]
    assert "no java in JAVA_HOME=/nowhere" in rows[1]
    assert "->  install OpenJDK 17 or 21" in rows[1]
    assert rows[2].startswith("compiler")
    assert answer.returncode == 1


def test_an_exception_in_a_check_fails_that_check_only() -> None:
    answer = doctor("home", "java", IMAGE_ASSETS_PROCESSES="many")
    rows = answer.stdout.splitlines()
    assert "ValueError: IMAGE_ASSETS_PROCESSES is 'many'" in rows[1]
    assert rows[2].split()[:2] == ["java", "ok"]
    assert answer.returncode == 1


def test_settings_are_relative_to_the_folder_of_the_command(tmp_path: Path) -> None:
    answer = doctor("home", folder=tmp_path, IMAGE_ASSETS_HOME="", PYTHONPATH=str(ROOT))
    assert f"{tmp_path}/.image_assets (not created yet)" in answer.stdout


def test_a_landing_folder_that_was_set_must_exist(tmp_path: Path) -> None:
    assert result_of("landing", tmp_path / "home")[0] == "skipped"
    assert result_of("landing", tmp_path / "home", IMAGE_ASSETS_LANDING=str(tmp_path / "none"))[0] == "failed"


def test_a_landing_folder_without_images_is_a_warning_and_a_label_table_must_list_some(tmp_path: Path) -> None:
    landing, table = tmp_path / "photos", tmp_path / "labels.csv"
    put(landing, "notes.docx", b"")
    settings = {"IMAGE_ASSETS_LANDING": str(landing), "IMAGE_ASSETS_LABELS": str(table)}

    def result(name: str) -> tuple[str, str]:
        return result_of(name, tmp_path / "home", **settings)

    state, row = result("landing")
    assert (state, "contains no image files; skipped: 1 other files (.docx 1)" in row) == ("warning", True)
    assert "does not exist: expected a file ending in .csv" in result("label table")[1]
    table.write_text("path,label\nday/1.png,roses\n")
    assert result("label table")[0] == "warning"
    put(landing, "day/2.png", png(2))
    assert result("landing")[0] == "ok"
    state, row = result("label table")
    assert (state, "none in" in row, "such as day/1.png" in row) == ("failed", True, True)
    put(landing, "day/1.png", png(1))
    state, row = result("label table")
    assert (state, "lists 1 of 2 image files" in row) == ("ok", True)


@pytest.mark.parametrize("name", [f"horovod {name}" for name in FRAMEWORKS])
def test_two_processes_take_a_training_step(name: str) -> None:
    answer = doctor(name, CUDA_VISIBLE_DEVICES="")
    row = answer.stdout.splitlines()[1]
    assert row.startswith(f"{name:<20}ok")
    assert "a training step of 2 processes on cpu, cpu" in row


def test_a_step_must_leave_all_processes_with_the_same_new_weights() -> None:
    assert to_finding([("cpu", "old", "new"), ("cpu", "old", "new")]).state == "ok"
    assert "not averaged" in to_finding([("cuda:0", "old", "new"), ("cuda:1", "old", "other")]).detail
    assert "changed no weights" in to_finding([("cpu", "old", "old"), ("cpu", "old", "old")]).detail


def test_alert_rules_need_the_addresses_of_their_receivers(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: sure roses, send_to: [oncall]}]")
    state, row = result_of("alerts", tmp_path, IMAGE_ASSETS_ALERT_RULES=str(rules))
    assert (state, "ValueError: IMAGE_ASSETS_ALERT_ONCALL is not set" in row) == ("failed", True)
    address = {"IMAGE_ASSETS_ALERT_ONCALL": "json://tOps3cret"}
    state, row = result_of("alerts", tmp_path, IMAGE_ASSETS_ALERT_RULES=str(rules), **address)
    assert (state, row.endswith("sent to oncall"), "tOps3cret" in row) == ("ok", True, False)


def test_an_unknown_check_is_rejected_with_the_existing_ones() -> None:
    answer = doctor("weather")
    assert answer.returncode == 1
    assert "Unknown check: weather. Choose from: python, java" in answer.stderr


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("Traceback\nValueError: one\nbye\n", "ValueError: one"),
        ("RankFailure: ImportError: two\n\nOn the rank:\nTraceback\nImportError: two\n", "ImportError: two"),
        ("Killed\n", "Killed"),
        ("", ""),
    ],
)
def test_the_line_that_explains_most_is_shown(output: str, line: str) -> None:
    assert last_error(output) == line


def result_of(name: str, home: Path, **variables: str) -> tuple[str, str]:
    """The state of one check in this process, and its row with the details and, if it failed, the remedy."""
    settings = {"IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": "", **variables}
    with patch.dict(os.environ, settings):  # and without the variables that checks set
        try:
            finding = CHECKS[name].run()
        except Exception:  # noqa: BLE001 - whatever it is, the check's process would end with it
            finding = Finding("failed", last_error(traceback.format_exc()))
    row = to_line(name, finding).removeprefix(name)
    assert ("  ->  " in row) == (finding.state == "failed")
    return finding.state, row


@pytest.mark.parametrize("name", ["label table", "dagster database", "s3", "spark master"])
def test_a_service_that_is_not_in_use_is_skipped(name: str, tmp_path: Path) -> None:
    assert result_of(name, tmp_path)[0] == "skipped"


@pytest.mark.parametrize("name", ["open files", "clock", "locks", "temporary files", "memory"])
def test_a_healthy_machine_is_ok(name: str, tmp_path: Path) -> None:
    assert result_of(name, tmp_path)[0] == "ok"


@pytest.mark.parametrize(("package", "expected"), [("triton==3.7.1 ; sys_platform == 'linux'", True), ("sympy", False)])
def test_a_package_for_gpus_may_be_missing_without_a_gpu(
    package: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"The package `torch` requires `{package}`, but it's not installed"
    monkeypatch.setenv("CUDA", "no")
    assert is_for_gpus(line) is expected
    monkeypatch.setenv("CUDA", "yes")
    assert not is_for_gpus(line)


def test_a_low_limit_of_open_files_is_reported() -> None:
    answer = doctor("open files", before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    row = answer.stdout.splitlines()[1]
    assert ("failed" in row, "256 open files" in row, "ulimit -n" in row) == (True, True, True)


@contextmanager
def server_of_1999() -> Iterator[str]:
    """A server whose clock is decades behind."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", "Fri, 31 Dec 1999 23:59:59 GMT")
            self.end_headers()

    with HTTPServer((HOST, 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


def test_a_clock_far_from_a_servers_is_reported(tmp_path: Path) -> None:
    with server_of_1999() as address:
        state, row = result_of("clock", tmp_path, AWS_ENDPOINT_URL=address)
    assert (state, f"off the clock of {address}" in row) == ("failed", True)


def test_ports_are_free_or_taken_by_another_program(tmp_path: Path) -> None:
    free = {name: str(free_port()) for name in ("DAGSTER_PORT", "GALLERY_PORT", "MLFLOW_PORT")}
    assert result_of("ports", tmp_path, **free)[0] == "ok"
    with socket.create_server((HOST, int(free["GALLERY_PORT"]))):
        state, row = result_of("ports", tmp_path, **free)
    assert (state, f"Port {free['GALLERY_PORT']} of {HOST} is not available" in row) == ("failed", True)


def test_a_spark_master_is_reachable_or_not(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as master:
        port = master.getsockname()[1]
        assert result_of("spark master", tmp_path, IMAGE_ASSETS_SPARK_MASTER=f"spark://{HOST}:{port}")[0] == "ok"
    state, row = result_of("spark master", tmp_path, IMAGE_ASSETS_SPARK_MASTER=f"spark://{HOST}:{port}")
    assert (state, "ConnectionRefusedError" in row, "make cluster" in row) == ("failed", True, True)


def test_an_mlflow_server_is_tested_with_the_account(
    accounts_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, ADMINISTRATOR)
    accounts_server.create_account("doctor", {})
    account = {
        "MLFLOW_TRACKING_URI": accounts_server.url,
        "MLFLOW_TRACKING_USERNAME": "doctor",
        "MLFLOW_TRACKING_PASSWORD": password_of("doctor"),
    }
    assert result_of("mlflow store", tmp_path, **account)[0] == "ok"
    state, row = result_of("mlflow store", tmp_path, **{**account, "MLFLOW_TRACKING_PASSWORD": "wrong-password"})
    assert (state, "MLFLOW_TRACKING_PASSWORD" in row, "wrong-password" in row) == ("failed", True, False)


def test_an_mlflow_server_that_is_down_is_reported_quickly(tmp_path: Path) -> None:
    start = time.monotonic()
    state, row = result_of("mlflow store", tmp_path, MLFLOW_TRACKING_URI=f"http://{HOST}:{free_port()}")
    assert time.monotonic() - start < 60, "by default, MLflow retries for minutes"
    assert (state, "check MLFLOW_TRACKING_URI" in row) == ("failed", True)


def test_a_broken_environment_is_installed_from_scratch() -> None:
    row = to_line("petastorm", Finding("failed", "ImportError: \x1b[2Jcannot import"))
    assert row.endswith("ImportError: �[2Jcannot import  ->  rm -r .venv, then make install")
    for framework in FRAMEWORKS:
        remedy = CHECKS[f"horovod {framework}"].remedy
        assert remedy == f"rm -r .venv {wheel_folder().parent}/horovod-*, then make install"


def test_a_home_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state, row = result_of("home", tmp_path)
    assert (state, f"chmod 700 {tmp_path}" in row) == ("warning", True)
    tmp_path.chmod(0o700)
    assert result_of("home", tmp_path)[0] == "ok"


def test_damaged_tables_of_the_home_are_named(tmp_path: Path) -> None:
    assert result_of("home tables", tmp_path)[0] == "skipped"
    tables = tables_at(tmp_path / "tables")
    for table in (RAW_IMAGES, IMAGE_FILES, IMAGE_SPLITS):
        tables.create(table)
    state, row = result_of("home tables", tmp_path)
    assert (state, "3 tables" in row) == ("ok", True)
    commit = "_delta_log/00000000000000000000.json"
    (tmp_path / "tables" / "image_files" / commit).write_text("")
    (tmp_path / "tables" / "image_splits" / commit).write_text('{"commitInfo"')
    state, row = result_of("home tables", tmp_path)
    assert (state, "raw_images" in row, "repair_tables" in row) == ("failed", False, True)
    assert f"image_files: its newest commit {tmp_path}/tables/image_files/{commit} is empty" in row
    assert f"{commit} is cut off" in row


def test_damaged_databases_of_the_home_are_named(tmp_path: Path, empty_store: Path) -> None:
    assert result_of("home databases", tmp_path)[0] == "skipped"
    store = tmp_path / "mlflow.db"
    shutil.copy(empty_store, store)
    assert result_of("home databases", tmp_path)[0] == "ok"
    store.write_bytes(store.read_bytes()[:8192] + b"x" * 20_000)
    state, row = result_of("home databases", tmp_path)
    assert (state, str(store) in row, "malformed" in row) == ("failed", True, True)
    store.write_bytes(b"")
    assert f"{store}: it is empty" in result_of("home databases", tmp_path)[1]


@needs_postgres
def test_the_dagster_database_is_opened_and_its_password_never_shown(tmp_path: Path) -> None:
    with postgres_server("dagster") as addresses:
        address = addresses["dagster"]
        state, row = result_of("dagster database", tmp_path, IMAGE_ASSETS_DAGSTER_DATABASE=address)
        assert (state, "dagster on 127.0.0.1 as owner" in row) == ("ok", True)
        for wrong in ("wrong-password", "100%wrong-password"):
            named = address.replace(PASSWORD, wrong)
            state, row = result_of("dagster database", tmp_path, IMAGE_ASSETS_DAGSTER_DATABASE=named)
            assert (state, "password authentication failed" in row, wrong in row) == ("failed", True, False)
    state, row = result_of("dagster database", tmp_path, IMAGE_ASSETS_DAGSTER_DATABASE=address)
    assert (state, "onnection refused" in row, PASSWORD in row) == ("failed", True, False)


@needs_s3_jars
def test_buckets_are_listed_and_written_to(tmp_path: Path) -> None:
    with s3_server() as variables:
        settings = {**variables, "IMAGE_ASSETS_STORAGE": f"s3://{BUCKET}/kept"}
        assert result_of("s3", tmp_path, **settings)[0] == "ok"
        state, row = result_of("s3", tmp_path, **{**settings, "IMAGE_ASSETS_STORAGE": "s3://no-such-bucket/kept"})
        assert (state, "bucket does not exist" in row, SECRET in row) == ("failed", True, False)
    state, row = result_of("s3", tmp_path, **settings)
    assert (state, "connect" in row, SECRET in row) == ("failed", True, False)


def test_an_account_that_may_list_only_its_own_folder_of_a_bucket_is_enough(tmp_path: Path) -> None:
    listed: list[tuple[str, str]] = []

    class Restricted(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            listed.append((query["prefix"][0], query["max-keys"][0]))
            self.send_response(200 if listed[-1][0].startswith("photos/") else 403)
            self.end_headers()
            self.wfile.write(b"<ListBucketResult/>")

    with Quiet((HOST, 0), Restricted) as server, serving(server):
        endpoint = {"AWS_ENDPOINT_URL": f"http://{HOST}:{server.server_port}", "AWS_ALLOW_HTTP": "true"}
        account = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": SECRET}
        row = result_of("s3", tmp_path, **endpoint, **account, IMAGE_ASSETS_LANDING=f"s3://{BUCKET}/photos")[1]
    assert listed == [("photos/", "1")]
    assert "Error" not in row


def test_pages_that_accept_requests_of_other_sites_are_reported(accounts_server: MlflowServer, tmp_path: Path) -> None:
    nowhere = {f"{name}_PORT": str(free_port()) for name in ("DAGSTER", "GALLERY", "MLFLOW")}
    assert result_of("web pages", tmp_path, **nowhere)[0] == "skipped"
    state, row = result_of("web pages", tmp_path, **nowhere, MLFLOW_TRACKING_URI=accounts_server.url)
    assert (state, "mlflow reject requests from other websites" in row) == ("ok", True)

    class Unprotected(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

    with Quiet((HOST, 0), Unprotected) as server, serving(server):
        state, row = result_of("web pages", tmp_path, **{**nowhere, "DAGSTER_PORT": str(server.server_port)})
    assert state == "failed"
    assert "accepts requests under any host name and forms submitted by other sites  ->  start Dagster" in row
