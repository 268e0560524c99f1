"""Each benchmark's own format in a small example, whose task is then judged."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ra3gym.errors import DataError
from ra3gym.tasks import CodeTask, FunctionTests, StdioTests, load_tasks
from ra3gym.tasks.public.benchmarks import BENCHMARKS
from ra3gym.tasks.public.graders import GRADERS
from ra3gym.verify import Judge, Limits

CASE = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=Limits(seconds=2.0)) as judge:
        yield judge


def loaded(name: str, folder: Path, *rows: dict[str, Any]) -> list[CodeTask]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_tasks(name, path=file))


def passes(judge: Judge, task: CodeTask, completion: str) -> bool:
    return judge.grade([(task, task.prompt + completion)])[0].passed


def packed(cases: object) -> str:
    """Pack private tests as LiveCodeBench does."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def livecodebench(**fields: Any) -> dict[str, Any]:
    return {
        "question_title": "A + B",
        "question_content": 'Read two numbers.\nPrint """their""" sum, not \\n.',
        "platform": "atcoder",
        "question_id": "abc001_a",
        "contest_id": "abc001",
        "contest_date": "2024-01-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([CASE]),
        "private_test_cases": packed([{**CASE, "input": "20 30", "output": "50"}]),
        "metadata": "{}",
        **fields,
    }


def test_livecodebench_stdin(tmp_path: Path, judge: Judge) -> None:
    (task,) = loaded("livecodebench", tmp_path, livecodebench())
    assert task.task_id == "LiveCodeBench/abc001_a"
    assert task.tests == StdioTests(("1 2\n", "20 30"), ("3\n", "50"), equality="numbers")
    assert passes(judge, task, "print(sum(map(int, input().split())))\n")
    assert not passes(judge, task, "print(3)\n")


def test_livecodebench_method(tmp_path: Path, judge: Judge) -> None:
    case = {"input": '[1, 2]\n"ab"', "output": "[2, 4, 2]", "testtype": "functional"}
    row = livecodebench(
        starter_code="class Solution:\n    def double(self, xs: list[int], s: str) -> list[int]:\n        ",
        public_test_cases=json.dumps([case]),
        private_test_cases=packed([{**case, "output": "[2.0, 4, 2]"}]),
        metadata=json.dumps({"func_name": "double"}),
    )
    (task,) = loaded("livecodebench", tmp_path, row)
    assert task.entry_point == "Solution.double"
    assert isinstance(task.tests, FunctionTests)
    assert task.tests.inputs[0] == ([1, 2], "ab")
    assert passes(judge, task, "return [2 * x for x in xs] + [len(s)]\n")
    assert not passes(judge, task, "return xs\n")


def method_task(folder: Path, annotation: str, output: object) -> CodeTask:
    """Return a task whose method `get(n)` is called with 2."""
    row = livecodebench(
        starter_code=f"class Solution:\n    def get(self, n: int) -> {annotation}:\n        ",
        public_test_cases=json.dumps([{"input": "2", "output": json.dumps(output), "testtype": "functional"}]),
        private_test_cases="[]",
        metadata=json.dumps({"func_name": "get"}),
    )
    (task,) = loaded("livecodebench", folder, row)
    return task


@pytest.mark.parametrize(
    "body",
    [
        "return [gcd(n, 4), Counter([n])[n]]",
        "return [len(deque([n, n])), math.floor(1.5)]",
        "go = lambda k: 0 if k == 0 else 1 + go(k - 1)\n        return [2, go(20000) - 19999]",
    ],
)
def test_programs_for_livecodebench_get_its_graders_imports(tmp_path: Path, judge: Judge, body: str) -> None:
    task = method_task(tmp_path, "List[int]", [2, 1])  # the starter code names List and imports nothing
    assert passes(judge, task, body)
    assert judge.grade([(task, f"class Solution:\n    def get(self, n):\n        {body}\n")])[0].passed


def test_scripts_for_livecodebench_get_its_graders_imports(tmp_path: Path, judge: Judge) -> None:
    (task,) = loaded("livecodebench", tmp_path, livecodebench())
    assert passes(judge, task, "print(reduce(add, map(int, stdin.read().split())))\n")


@pytest.mark.parametrize(
    ("answer", "output", "same"),
    [
        ("(1, n)", [1, 2], True),
        ("[(1, n)]", [[1, 2]], False),
        ("[True, 2.0]", [1, 2], True),
        ("1 - n % 2", True, True),
        ("'2'", 2, False),
        ("0.1 + 0.2", 0.3, False),
        ("{'a': [n]}", {"a": [2.0]}, True),
        ("None", None, True),
    ],
)
def test_livecodebench_compares_values_as_its_grader(
    tmp_path: Path, judge: Judge, answer: str, output: object, same: bool
) -> None:
    assert passes(judge, method_task(tmp_path, "object", output), f"return {answer}") is same


@pytest.mark.parametrize(
    ("printed", "output", "same"),
    [
        ("2.0 3", "2  3.00", True),
        (" 2\n", "2", True),
        ("2\n3", "2 3", False),
        ("1e1000000000", "1", False),
        ("a  b", "a b", False),
        ("50000000000000000", "50000000000000001", False),
        ("nan", "NaN", False),
        ("snan", "1", False),
    ],
)
def test_livecodebench_compares_lines_as_its_grader(
    tmp_path: Path, judge: Judge, printed: str, output: str, same: bool
) -> None:
    case = {"input": "", "output": output, "testtype": "stdin"}
    row = livecodebench(public_test_cases=json.dumps([case]), private_test_cases="[]")
    (task,) = loaded("livecodebench", tmp_path, row)
    assert passes(judge, task, f"print({printed!r})\n") is same


def test_each_benchmark_has_a_row_in_the_table_of_graders() -> None:
    assert set(GRADERS) == set(BENCHMARKS)


def test_private_cases_may_be_plain_json(tmp_path: Path) -> None:
    (task,) = loaded("livecodebench", tmp_path, livecodebench(private_test_cases=json.dumps([CASE])))
    assert len(task.tests) == 2


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"private_test_cases": "??"}, "'private_test_cases': neither JSON nor packed JSON"),
        ({"private_test_cases": packed([])[:-8]}, "'private_test_cases': neither JSON nor packed JSON"),
        ({"public_test_cases": '[{"input": "1"}]'}, "'public_test_cases': test case 0 needs"),
        ({"public_test_cases": "{}"}, "'public_test_cases': must hold a list"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "no test cases"),
        ({"question_content": None}, "field 'question_content' is missing"),
        ({"public_test_cases": json.dumps([{**CASE, "testtype": "functional"}])}, "is not JSON: .*'1 2'"),
    ],
)
def test_bad_livecodebench_rows(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 1: .*{message}|{message}"):
        loaded("livecodebench", tmp_path, livecodebench(**fields))


def test_a_pickle_that_holds_more_than_a_string_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(DataError, match="mkdir in a pickle that should hold a string"):
        loaded("livecodebench", tmp_path, livecodebench(private_test_cases=evil))
    assert not (tmp_path / "evil").exists()


def codeforces(**fields: Any) -> dict[str, Any]:
    return {
        "id": "1/A",
        "title": "Squares",
        "description": "Print the square of n.",
        "input_format": "One number.",
        "output_format": "One number.",
        "interaction_format": None,
        "note": None,
        "examples": [{"input": "2", "output": "4"}],
        "official_tests": [{"input": "2", "output": "4"}, {"input": "-3", "output": "9"}],
        "official_tests_complete": True,
        "input_mode": "stdin",
        "generated_checker": None,
        **fields,
    }


def test_codeforces(tmp_path: Path, judge: Judge) -> None:
    (task,) = loaded("codeforces", tmp_path, codeforces())
    assert task.tests == StdioTests(("2", "-3"), ("4", "9"))
    assert task.prompt.startswith('"""\nSquares\n\nPrint the square of n.\n\nInput\nOne number.')
    assert "Example input\n2\nExample output\n4" in task.prompt
    assert passes(judge, task, "print(int(input()) ** 2)\n")
    assert not passes(judge, task, "print(int(input()) * 2)\n")


def test_codeforces_leaves_out_problems_that_stdout_cannot_decide(tmp_path: Path) -> None:
    rows = [
        codeforces(generated_checker="import sys"),
        codeforces(interaction_format="Ask."),
        codeforces(input_mode="file"),
        codeforces(examples=[], official_tests=None),
    ]
    assert len(loaded("codeforces", tmp_path, *rows, codeforces())) == 1
    with pytest.raises(DataError, match="every test needs 'input' and 'output' strings"):
        loaded("codeforces", tmp_path, codeforces(official_tests=[{"input": 1}]))


def test_codeforces_splits_are_files(tmp_path: Path) -> None:
    for name, row in (("train-0", codeforces()), ("train-1", codeforces(id="2")), ("test-0", codeforces(id="3"))):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    assert [task.task_id for task in load_tasks("codeforces", path=tmp_path, split="train")] == [
        "Codeforces/1/A",
        "Codeforces/2",
    ]
    assert len(load_tasks("codeforces", path=tmp_path)) == 3


def test_acecode(tmp_path: Path, judge: Judge) -> None:
    row = {
        "id": "oss_1",
        "source": "oss",
        "question": "Write inc(x).",
        "test_cases": ["assert sorted(inc([1])) == [2]", "assert inc([]) == []"],
        "inferences": [],
    }
    (task,) = loaded("acecode", tmp_path, row)
    assert (task.task_id, task.entry_point, task.canonical_solution) == ("oss_1", "inc", None)
    assert passes(judge, task, "def inc(xs):\n    return [x + 1 for x in xs]\n")
    with pytest.raises(DataError, match="'test_cases': the first assert calls no function"):
        loaded("acecode", tmp_path, {**row, "test_cases": ["assert True"]})


def test_evalplus_compares_without_numpy(tmp_path: Path, judge: Judge) -> None:
    test = """
import numpy as np

def assertion(out, exp, atol):
    if isinstance(out, np.ndarray) or out != exp:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)

def check(candidate):
    for i, (inp, exp) in enumerate(zip([[1.0], [2.0]], [[0.5], [1.0]])):
        assertion(candidate(*inp), exp, 1e-6)
"""
    prompt = "def half(x):\n"
    row = {"task_id": "HumanEval/0", "prompt": prompt, "entry_point": "half", "canonical_solution": "", "test": test}
    (task,) = loaded("humaneval+", tmp_path, row)
    assert passes(judge, task, "    return [x / 2 + 1e-9]\n")
    assert not passes(judge, task, "    return [x / 2 + 1e-3]\n")
    assert not passes(judge, task, "    return [x / 2, 0]\n")


def test_mbpp_prompts_are_valid_python_for_any_text(tmp_path: Path, judge: Judge) -> None:
    row = {
        "task_id": 11,
        "text": 'Write a function that finds """ and \\N in "x"',
        "code": "import re\nN = 1\ndef helper(s):\n    return s\ndef find(s):\n    return '\\\\N' in helper(s)",
        "test_setup_code": "import math",
        "test_list": ["assert find('\\\\N') == True", "assert find('') == bool(math.floor(0.5))"],
    }
    (task,) = loaded("mbpp", tmp_path, row)
    assert task.entry_point == "find"
    assert task.prompt.count("assert") == 2
    assert judge.grade([(task, task.canonical_program)])[0].passed
    (plus,) = loaded("mbpp+", tmp_path, {**row, "prompt": row["text"], "test": "assert find('a') is False\n"})
    assert plus.prompt.count("assert") == 1
    assert judge.grade([(plus, plus.canonical_program)])[0].passed
