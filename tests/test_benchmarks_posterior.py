"""The posterior's benchmark: its numpy peer against our own, its summaries, and a smoke run of the script itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "posterior.py"
HAS_HMMLEARN = importlib.util.find_spec("hmmlearn") is not None


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("posterior_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_all_systems_find_the_same(benchmark: ModuleType) -> None:
    log_emission_BTK = benchmark.draw_emissions(5, 9, 6, seed=1)
    np.testing.assert_allclose(np.exp(log_emission_BTK).sum(axis=2), 1.0)
    systems = benchmark.all_systems(log_emission_BTK, hmmlearn=HAS_HMMLEARN)
    reference = systems["numpy"]()
    np.testing.assert_allclose(reference[1].sum(axis=2), 1.0, atol=1e-12)
    for name, infer in systems.items():
        if name != "torch, cuda":
            found = benchmark.errors(infer(), reference)
            assert max(found.values()) < 1e-12, name


def test_times_are_compared_within_a_round(benchmark: ModuleType) -> None:
    times = {("ra3gym", 1): 2.0, ("ra3gym", 2): 4.0, ("numpy", 1): 6.0, ("numpy", 2): 20.0}
    passes = [
        {"latents": 8, "system": system, "round": number, "cpu_ms": cpu, "wall_ms": 2 * cpu}
        for (system, number), cpu in times.items()
    ]
    ours, peer = benchmark.summarize(passes, cells_per_latent=1000)
    assert ours["times_ours"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert peer["times_ours"] == {"median": 4.0, "min": 3.0, "max": 5.0}
    assert ours["cpu_ms"]["median"] == 3.0
    assert ours["ns_per_cell"] == pytest.approx(3e6 / 8000)


def test_smoke_run(tmp_path: Path) -> None:
    output = tmp_path / "posterior.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(output)]
    command += [] if HAS_HMMLEARN else ["--no-hmmlearn"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert {row["system"] for row in result["passes"]} >= {"ra3gym", "torch, cpu", "numpy"}
    assert {row["latents"] for row in result["passes"]} == {8, 32}
    assert [row["lines"] for row in result["summary"]["lengths"]] == [8, 16]
    worst = max(max(error.values()) for systems in result["errors"].values() for error in systems.values())
    assert worst < 1e-12


@pytest.mark.skipif(HAS_HMMLEARN, reason="hmmlearn is installed")
def test_without_hmmlearn_the_error_names_the_extra() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: hmmlearn is missing: pip install 'ra3gym[benchmarks]'")
