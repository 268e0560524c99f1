"""Limits of programs come from the data, and a user's values replace them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ra3gym.errors import DataError
from ra3gym.experiments.commands.task_sets import judge_limits, timeouts_line, without_limits
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.verify import Judge, Limits

FUNCTION_TEST = "def check(candidate):\n    assert candidate(1) == 1\n"
RECORDS: dict[str, dict[str, Any]] = {
    "humaneval": {"task_id": "a", "prompt": "", "entry_point": "f", "test": FUNCTION_TEST},
    "humaneval+": {"task_id": "a", "prompt": "", "entry_point": "f", "test": FUNCTION_TEST},
    "mbpp+": {
        "task_id": 1,
        "prompt": "f",
        "code": "def f(x):\n    return x\n",
        "test_list": ["assert f(1) == 1"],
        "test": "assert f(1) == 1",
    },
    "livecodebench": {
        "question_id": "a",
        "question_content": "Add one.",
        "starter_code": "class Solution:\n    def inc(self, n):\n        ",
        "public_test_cases": json.dumps(
            [{"input": str(n), "output": str(n + 1), "testtype": "functional"} for n in range(3)]
        ),
        "private_test_cases": "[]",
        "metadata": '{"func_name": "inc"}',
    },
    "codeforces": {"id": "1/A", "description": "Echo.", "examples": [{"input": "1", "output": "1"}]},
}


def loaded(name: str, folder: Path, **fields: Any) -> CodeTask:
    (folder / "tasks.jsonl").write_text(json.dumps(RECORDS[name] | fields))
    (task,) = load_tasks(name, path=folder / "tasks.jsonl")
    return task


@pytest.mark.parametrize(
    ("name", "fields", "limits"),
    [
        ("humaneval", {}, (None, None)),
        ("humaneval+", {}, (60.0, 4096)),
        ("mbpp+", {}, (60.0, 4096)),
        ("livecodebench", {}, (6.0, None)),
        ("codeforces", {}, (None, None)),
        ("codeforces", {"time_limit": 2.5, "memory_limit": 256.0}, (2.5, 256 + 128)),
        ("codeforces", {"time_limit": 1, "memory_limit": None}, (1.0, None)),
    ],
)
def test_limits_come_from_the_data(
    tmp_path: Path, name: str, fields: dict[str, Any], limits: tuple[float | None, int | None]
) -> None:
    task = loaded(name, tmp_path, **fields)
    assert (task.seconds, task.memory_mb) == limits


@pytest.mark.parametrize("value", [0, -1, "2 s", True, [1]])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    for name in ("time_limit", "memory_limit"):
        with pytest.raises(DataError, match=f"line 1: field '{name}': must be a positive number, got"):
            loaded("codeforces", tmp_path, **{name: value})


def test_each_test_of_a_method_has_its_seconds(tmp_path: Path) -> None:
    """Three calls of .6 s wait longer than the judge's limit for a program, and less than the task's for a test."""
    task = loaded("livecodebench", tmp_path)
    source = "import time\nclass Solution:\n    def inc(self, n):\n        end = time.process_time() + 0.6\n"
    source += "        while time.process_time() < end: pass\n        return n + 1\n"
    with Judge(workers=1, limits=Limits(seconds=1.0, wall_seconds=300.0)) as judge:
        assert judge.grade([(task, source)])[0].passed
        (short,) = without_limits([task], seconds=1.0, memory_mb=None)
        assert judge.grade([(short, source)])[0].status == "timeout"


def test_a_users_values_replace_those_of_the_data(tmp_path: Path) -> None:
    task = loaded("humaneval+", tmp_path)
    assert without_limits([task], None, None) == [task]
    (task,) = without_limits([task], 5.0, None)
    assert (task.seconds, task.memory_mb) == (None, 4096)
    (task,) = without_limits([task], None, 100)
    assert (task.seconds, task.memory_mb) == (None, None)
    assert judge_limits(5.0, None) == Limits(seconds=5.0)
    assert judge_limits(None, 100) == Limits(memory_mb=100)


def test_the_share_of_timeouts_is_said() -> None:
    assert timeouts_line({"passed": 3, "wrong_answer": 1}) is None
    assert str(timeouts_line({"passed": 6, "timeout": 2})).startswith("25.0% of the samples were out of time")
