"""The judge's benchmark: its mutants, what it makes of HumanEval, and a smoke run of the script itself."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ra3gym.tasks import load_tasks
from ra3gym.tasks.task import CheckTests, CodeTask, FunctionTests

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "judge.py"
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


@pytest.fixture(scope="module", autouse=True)
def beside_the_script() -> Iterator[None]:
    """The benchmarks import each other as a script does, from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def programs() -> ModuleType:
    return importlib.import_module("judge_programs")


def test_every_mutation_is_made_once_and_in_the_function_alone(programs: ModuleType) -> None:
    made = list(programs.mutants(SOURCE, "f", seed=0))
    operators = {operator for operator, _ in made}
    assert operators == {"comparison", "arithmetic", "and/or", "constant", "condition", "return", "statement"}
    assert len({program for _, program in made}) == len(made)
    for _, program in made:
        helper, function = ast.parse(program).body
        assert ast.unparse(helper) == "def helper(x):\n    return x + 1"
        assert ast.unparse(function) != ast.unparse(ast.parse(SOURCE).body[1])


def test_mutants_repeat_by_their_seed(programs: ModuleType) -> None:
    assert list(programs.mutants(SOURCE, "f", 1)) == list(programs.mutants(SOURCE, "f", 1))
    assert list(programs.mutants(SOURCE, "f", 1)) != list(programs.mutants(SOURCE, "f", 2))


def test_calls_are_recorded_as_they_were_before_the_function_changed_its_arguments(programs: ModuleType) -> None:
    check = "def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\n    assert candidate([0.5]) == [0.5]\n"
    prompt = "def f(values):\n"
    task = CodeTask("t", prompt, "f", CheckTests(check), "    values.sort()\n    return values\n")
    expected = FunctionTests((([2, 1],), ([0.5],)), ([1, 2], [0.5]), float_tolerance=1e-6)
    assert programs.recorded_calls(task, seed=0) == expected


def test_ratios_compare_passes_of_the_same_round_and_number_of_workers() -> None:
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
    systems = importlib.import_module("judge").summarize(passes, starts)["systems"]
    (peer,) = [entry for entry in systems if entry["system"] == "peer"]
    assert peer["per_second"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert peer["ratios"]["function"] == {"median": 3.0, "min": 2.0, "max": 4.0}


@needs_data
def test_all_of_humaneval_has_function_tests(programs: ModuleType) -> None:
    recorded = [programs.recorded_calls(task, seed=0) for task in load_tasks("humaneval")]
    assert len(recorded) == 164
    assert all(len(tests) for tests in recorded)


def test_a_peers_process_needs_the_standard_library_alone() -> None:
    program = {"source": "def f():\n    return 1\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "f"}
    wrong = program | {"source": "def f():\n    return 2\n"}
    posed = {"programs": [each | {"calls": "([], [])"} for each in (program, wrong)], "seconds": 60.0}
    command = [sys.executable, "-I", "-S", str(BENCHMARKS / "judge_peers.py"), "subprocess -I -S"]
    done = subprocess.run(command, input=json.dumps(posed) + "\n2\n", capture_output=True, text=True)
    about, graded = map(json.loads, done.stdout.splitlines())
    assert about.keys() == {"version", "python"}
    assert graded["passed"] == [True, False]


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
