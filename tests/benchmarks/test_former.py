"""Tests of the checkout of an earlier commit that benchmarks compare with."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.former import COMMIT, former_root


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git checkout with two commits, and with benchmarks that are not committed yet."""
    monkeypatch.delenv(COMMIT, raising=False)
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    for number in ("first", "second"):
        (root / "definitions.py").write_text(number)
        (root / "benchmarks" / "ours.py").write_text(number)
        subprocess.run(["git", "add", "."], cwd=root, check=True)
        author = ["-c", "user.name=name", "-c", "user.email=name@example.com"]
        subprocess.run(["git", *author, "commit", "--quiet", "-m", number], cwd=root, check=True)
    (root / "benchmarks" / "ours.py").write_text("not committed")
    return root


def test_the_commit_before_the_last_runs_with_the_benchmarks_of_this_checkout(checkout: Path, tmp_path: Path) -> None:
    former = former_root(checkout, tmp_path / "former")
    assert former
    assert (former / "definitions.py").read_text() == "first"
    assert (former / "benchmarks" / "ours.py").read_text() == "not committed"


def test_a_commit_can_be_named(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT, "HEAD")
    former = former_root(checkout, tmp_path / "former")
    assert former
    assert (former / "definitions.py").read_text() == "second"


def test_an_unknown_commit_is_refused(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT, "nowhere")
    with pytest.raises(SystemExit, match="BEFORE is 'nowhere': expected a commit"):
        former_root(checkout, tmp_path / "former")


def test_an_installed_copy_has_no_earlier_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert former_root(tmp_path, tmp_path / "former") is None
