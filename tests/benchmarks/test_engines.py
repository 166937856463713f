"""Tests of the engine figures."""

from benchmarks.engines import engine_ratios, engines_section, with_differences


def run(cpu_seconds: float, probabilities: list[list[float]], error: str | None = None) -> dict:
    answer = {"work_seconds": 9.0, "cpu_seconds": cpu_seconds, "probabilities": probabilities}
    return {"seconds": 30.0, "cpu_seconds": 5.0, "peak_bytes": {}, "answer": {} if error else answer, "error": error}


def test_an_engine_is_compared_with_the_framework_and_one_that_is_missing_says_so() -> None:
    runs = {
        "torch, frozen TorchScript": [run(2.0, [[0.25, 0.75], [0.5, 0.5]])],
        "onnxruntime": [run(1.0, [[0.25, 0.75], [0.375, 0.625]])],
        "openvino": [run(1.0, [], error="No module named 'openvino'")],
    }
    found = {"torch": with_differences({"count": 100, "runs": runs}, "torch, frozen TorchScript")}
    (ratio,) = engine_ratios(found)
    assert ratio[1] == "2.00"
    section = engines_section(found)
    assert "| torch: onnxruntime | 100 (100 to 100) | 2.00 | 3.0 | 0 | 1e-01 | 50.0% |" in section
    assert "No module named 'openvino'" in section
