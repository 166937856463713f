"""Inference engines on a CPU: the frameworks themselves, ONNX Runtime and OpenVINO, with one thread each."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.markdown import markdown, to_cell
from benchmarks.measurement import ALLOCATOR, measured
from benchmarks.photographs import CACHE, Photographs, landing_of
from benchmarks.recipe_training import BACKBONE
from benchmarks.results import Spread, good, peak_megabytes

FIRST = {"tensorflow": "tensorflow, tf.function", "torch": "torch, frozen TorchScript"}  # the baselines
OTHERS = ("onnxruntime", "openvino")
BATCHES = {"onnxruntime": 8}  # images per batch; 32 in the other engines


def engines(photographs: Photographs, count: int, repeats: int) -> dict:
    """Run both networks in every engine that supports them, interleaved."""
    landing, work = landing_of(photographs, count), CACHE / "output"
    shutil.rmtree(work, ignore_errors=True)
    variables = {**ALLOCATOR, BACKBONE: os.environ.get(BACKBONE, "none"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    program = [sys.executable, "-m", "benchmarks.engine_runs"]
    found: dict[str, Any] = {framework: {"count": count, "runs": {}} for framework in FIRST}
    for framework in FIRST:
        made = measured([*program, "prepare", str(landing), str(work / framework), framework], variables)
        if made.error:
            raise RuntimeError(f"preparing the {framework} network failed: {made.error}")
    for repeat in range(repeats):
        for framework, first in FIRST.items():
            for engine in (first, *OTHERS):
                kernel = json.dumps([engine, BATCHES.get(engine, 32)])
                run = measured([*program, "compute", str(landing), str(work / framework), kernel], variables)
                found[framework]["runs"].setdefault(engine, []).append(asdict(run))
                print(f"engines {repeat + 1}/{repeats}  {framework}, {engine}: {run.error or 'done'}", flush=True)
    shutil.rmtree(work)
    return {framework: with_differences(of, FIRST[framework]) for framework, of in found.items()}


def with_differences(found: dict[str, Any], first: str) -> dict[str, Any]:
    """Replace each run's probabilities with their largest difference from those of the first engine."""
    (expected, *_) = (np.array(run["answer"]["probabilities"]) for run in good(found["runs"][first]))
    for run in (run for runs in found["runs"].values() for run in good(runs)):
        probabilities = np.array(run["answer"].pop("probabilities"))
        run["answer"]["difference"] = float(np.abs(probabilities - expected).max())
        run["answer"]["same_labels"] = float((probabilities.argmax(1) == expected.argmax(1)).mean())
    return found


def engine_rates(found: dict[str, Any]) -> dict[str, Spread]:
    """Images per second and core, for every engine that finished."""
    return {
        engine: Spread.of([found["count"] / run["answer"]["cpu_seconds"] for run in good(runs)])
        for engine, runs in found["runs"].items()
        if good(runs)
    }


def engine_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """ONNX Runtime compared with the framework itself."""
    rows = []
    for framework, of in found.items():
        rate = engine_rates(of)
        if FIRST[framework] in rate and "onnxruntime" in rate:
            compared = f"{framework} network: images/s in ONNX Runtime, relative to the framework"
            rows.append((compared, f"{rate['onnxruntime'].median / rate[FIRST[framework]].median:.2f}", "1.1"))
    return rows


def engines_section(found: dict[str, Any]) -> str:
    """The page's section on engines."""
    head = [
        "",
        "images/s per core",
        "relative to the framework",
        "startup, CPU s",
        "peak MB",
        "largest difference",
        "same labels",
    ]
    rows = []
    for framework, of in found.items():
        rate = engine_rates(of)
        for engine, runs in of["runs"].items():
            name = f"{framework}: {engine}"
            if engine not in rate:
                rows.append([name, to_cell(runs[0]["error"]), *[""] * 5])
                continue
            answers = [run["answer"] for run in good(runs)]
            started = Spread.of([run["cpu_seconds"] - 2 * run["answer"]["cpu_seconds"] for run in good(runs)]).median
            rows.append(
                [
                    name,
                    f"{rate[engine]:,.0f}",
                    f"{rate[engine].median / rate[FIRST[framework]].median:.2f}" if FIRST[framework] in rate else "",
                    f"{started:.1f}",
                    f"{peak_megabytes(runs):,.0f}",
                    f"{max(one['difference'] for one in answers):.0e}",
                    f"{min(one['same_labels'] for one in answers):.1%}",
                ]
            )
    count = next(iter(found.values()))["count"]
    return f"## Engines: {count:,} photographs, one thread\n\n{markdown(head, rows)}"
