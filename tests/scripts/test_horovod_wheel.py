from pathlib import Path

import pytest

from scripts.horovod_wheel import apply_edits, pinned, share_done, to_progress

STANDARD = "set(CMAKE_CXX_STANDARD 14)\n"
OPTIMIZED = """\
string(REPLACE "-O2" "-O3" CMAKE_C_FLAGS_RELWITHDEBINFO "${CMAKE_C_FLAGS_RELWITHDEBINFO}")
string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")
"""
BACKEND = """\
import keras
if is_version_greater_equal_than(tf.__version__, "2.6.0"):
    from keras import backend as K
else:
    from tensorflow.python.keras import backend as K
after = 1
"""
OPERATIONS = """\
#if TENSORFLOW_VERSION >= 2006000000
#include <xla.h>
#if TENSORFLOW_VERSION >= 2006000000 && SOMETHING
"""
OPTIMIZER = """\
def create_distributed_optimizer(keras, optimizer):
    class _DistributedOptimizer(*optimizer.__class__.__bases__):
        pass
"""
SOURCE = {
    "CMakeLists.txt": STANDARD + OPTIMIZED,
    "horovod/torch/CMakeLists.txt": STANDARD,
    "horovod/tensorflow/xla_mpi_ops.cc": OPERATIONS,
    "horovod/tensorflow/keras/__init__.py": BACKEND,
    "horovod/tensorflow/keras/callbacks.py": BACKEND,
    "horovod/_keras/__init__.py": OPTIMIZER,
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The lines of Horovod's source distribution that are edited."""
    for name, text in SOURCE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_each_file_is_edited_once(source: Path) -> None:
    apply_edits(source)
    texts = {name: (source / name).read_text() for name in SOURCE}
    assert texts["horovod/torch/CMakeLists.txt"] == "set(CMAKE_CXX_STANDARD 17)\n"
    lines = texts["CMakeLists.txt"].splitlines()
    assert lines[0] == "set(CMAKE_CXX_STANDARD 17)"
    assert lines[-1] == 'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")'
    assert texts["horovod/tensorflow/xla_mpi_ops.cc"] == OPERATIONS.replace("000\n", "000 && HAVE_GPU\n", 1)
    assert texts["horovod/tensorflow/keras/callbacks.py"] == "import keras\nK = keras.backend\nafter = 1\n"
    guarded = texts["horovod/_keras/__init__.py"]
    assert guarded.index("raise TypeError") < guarded.index("class _DistributedOptimizer")


def test_the_guard_rejects_a_keras_3_optimizer(source: Path) -> None:
    apply_edits(source)
    names: dict = {}
    exec((source / "horovod/_keras/__init__.py").read_text(), names)
    with pytest.raises(TypeError, match="DistributedGradientTape"):
        names["create_distributed_optimizer"](None, object())


@pytest.mark.parametrize("name", SOURCE)
def test_a_file_without_a_match_is_rejected(source: Path, name: str) -> None:
    (source / name).write_text("something else\n")
    with pytest.raises(ValueError, match=rf"{name}: expected one match for an edit, found 0"):
        apply_edits(source)


def test_a_file_with_two_matches_is_rejected(source: Path) -> None:
    (source / "CMakeLists.txt").write_text(STANDARD * 2 + OPTIMIZED)
    with pytest.raises(ValueError, match="found 2"):
        apply_edits(source)


def test_edits_are_not_applied_twice(source: Path) -> None:
    apply_edits(source)
    with pytest.raises(ValueError, match="found 0"):
        apply_edits(source)


def test_the_frameworks_versions_come_from_the_requirements() -> None:
    assert pinned("torch").split(".")[0] == "2"
    with pytest.raises(ValueError, match="does not pin nothing"):
        pinned("nothing")


def test_progress_counts_the_time_before_the_first_file_and_for_the_last_ones() -> None:
    outputs = [
        "Running cmake",
        "[  0%] Building CXX",
        "[  0%] Building\n[ 49%] Building",
        "[ 98%] Linking",
        "[100%] Built",
    ]
    assert [share_done(output) for output in outputs] == pytest.approx([0, 0.13, 0.49, 0.85, 0.85])


@pytest.mark.parametrize(
    ("seconds", "expected", "text"),
    [
        (30, None, " 30 s, preparing"),
        (60, 240, " 60 s, 25 %, about 180 s left"),
        (250, 240, "250 s, 99 %, nearly done"),
    ],
)
def test_the_remaining_time_is_estimated_once_files_are_compiled(
    seconds: float, expected: float | None, text: str
) -> None:
    assert to_progress(seconds, expected) == text
