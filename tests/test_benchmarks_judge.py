"""The judge's benchmark: its mutants, what it makes of HumanEval, and a smoke run of the script itself."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ra3gym.tasks import load_tasks
from ra3gym.tasks.task import CheckTests, CodeTask, FunctionTests

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "judge.py"
SOURCE = '''\
def helper(x):
    return x + 1


def f(values, low=0):
    """Sum what is above low."""
    total = 0
    for value in values:
        if value > low and value != 3:
            total += value
    print(total)
    return total
'''
needs_data = pytest.mark.skipif("RA3GYM_DATA" not in os.environ, reason="RA3GYM_DATA names no folder of benchmarks")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_the_judge", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_mutation_is_made_once_and_in_the_function_alone(benchmark: ModuleType) -> None:
    made = list(benchmark.mutants(SOURCE, "f", seed=0))
    operators = {operator for operator, _ in made}
    assert operators == {"comparison", "arithmetic", "and/or", "constant", "condition", "return", "statement"}
    assert len({program for _, program in made}) == len(made)
    for _, program in made:
        helper, function = ast.parse(program).body
        assert ast.unparse(helper) == "def helper(x):\n    return x + 1"
        assert ast.unparse(function) != ast.unparse(ast.parse(SOURCE).body[1])


def test_mutants_repeat_by_their_seed(benchmark: ModuleType) -> None:
    assert list(benchmark.mutants(SOURCE, "f", 1)) == list(benchmark.mutants(SOURCE, "f", 1))
    assert list(benchmark.mutants(SOURCE, "f", 1)) != list(benchmark.mutants(SOURCE, "f", 2))


def test_calls_are_recorded_as_they_were_before_the_function_changed_its_arguments(benchmark: ModuleType) -> None:
    check = "def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\n    assert candidate([0.5]) == [0.5]\n"
    prompt = "def f(values):\n"
    task = CodeTask("t", prompt, "f", CheckTests(check), "    values.sort()\n    return values\n")
    expected = FunctionTests((([2, 1],), ([0.5],)), ([1, 2], [0.5]), float_tolerance=1e-6)
    assert benchmark.recorded_calls(task, seed=0) == expected


def test_ratios_compare_passes_of_the_same_round_and_number_of_workers(benchmark: ModuleType) -> None:
    rates = {  # (round, system): gradings per second; round 0 warms up
        (0, "ra3gym"): 1.0,
        (0, "peer"): 1.0,
        (1, "ra3gym"): 40.0,
        (1, "peer"): 10.0,
        (2, "ra3gym"): 60.0,
        (2, "peer"): 30.0,
    }
    passes = [
        {
            "round": number,
            "system": system,
            "tests": tests,
            "workers": 1,
            "per_second": rate,
            "cpu_ms": 2.0,
            "wrong_verdicts": [],
        }
        for (number, system), rate in rates.items()
        for tests in (("function", "assert") if system == "ra3gym" else ("assert",))
    ]
    starts = [{"round": 1, "workers": 1, "constructed_seconds": 0.2}]
    systems = benchmark.summarise(passes, starts)["systems"]
    (peer,) = [entry for entry in systems if entry["system"] == "peer"]
    assert peer["per_second"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert peer["ratios"]["function"] == {"median": 3.0, "min": 2.0, "max": 4.0}


@needs_data
def test_all_of_humaneval_has_function_tests(benchmark: ModuleType) -> None:
    recorded = [benchmark.recorded_calls(task, seed=0) for task in load_tasks("humaneval")]
    assert len(recorded) == 164
    assert all(len(tests) for tests in recorded)


@needs_data
def test_smoke_run(tmp_path: Path) -> None:
    output = tmp_path / "judge.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--tasks", "4", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["programs"]["right"] == 4
    assert {(row["system"], row["tests"]) for row in result["passes"]} >= {
        ("ra3gym", "function"),
        ("ra3gym", "assert"),
        ("subprocess -I -S", "assert"),
    }
    assert [row["wrong_verdicts"] for row in result["passes"] if row["system"] == "ra3gym"].count([]) == 8


def test_without_data_the_error_says_what_to_give() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RA3GYM_DATA"}
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no data: give --data FOLDER")
