"""The real HumanEval and MBPP, where a data folder is at hand: their own solutions pass, simple wrong ones fail.

The folder is `RA3GYM_DATA`, or one beside the checkout; without it these tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.verify import Judge, Limits

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
DATA = Path(os.environ.get("RA3GYM_DATA") or BESIDE)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of public benchmarks at hand")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=2, limits=Limits(seconds=30.0)) as judge:
        yield judge


def tasks_of(name: str) -> Sequence[CodeTask]:
    return load_tasks(name, path=DATA)


def do_not_pass(judge: Judge, tasks: Sequence[CodeTask], completion: str) -> bool:
    return not any(verdict.passed for verdict in judge.grade([(task, task.prompt + completion) for task in tasks]))


def failing(judge: Judge, tasks: Sequence[CodeTask]) -> list[str]:
    verdicts = judge.grade([(task, task.canonical_program) for task in tasks])
    return [f"{task.task_id}: {v.message}" for task, v in zip(tasks, verdicts, strict=True) if not v.passed]


def test_humaneval(judge: Judge) -> None:
    tasks = tasks_of("humaneval")
    assert len(tasks) == 164
    assert failing(judge, tasks) == []
    assert do_not_pass(judge, tasks, "    return None\n")


@pytest.mark.parametrize(("name", "count"), [("mbpp", 974), ("mbpp-sanitized", 427)])
def test_mbpp(judge: Judge, name: str, count: int) -> None:
    tasks = tasks_of(name)
    assert len(tasks) == count
    assert failing(judge, tasks) == []
    wrong = judge.grade([(task, f"def {task.entry_point}(*arguments):\n    return None\n") for task in tasks[:100]])
    assert not any(verdict.passed for verdict in wrong)


def test_mbpp_splits() -> None:
    sizes = [len(load_tasks("mbpp", path=DATA, split=split)) for split in ("prompt", "test", "validation", "train")]
    assert sizes == [10, 500, 90, 374]


@pytest.mark.parametrize(("name", "count"), [("humaneval+", 164), ("mbpp+", 378)])
def test_evalplus(judge: Judge, name: str, count: int) -> None:
    tasks = tasks_of(name)
    assert len(tasks) == count
    sample = tasks[20:30]  # the whole of it takes minutes
    assert failing(judge, sample) == []


def test_the_task_that_humaneval_plus_poses_wrongly(judge: Judge) -> None:
    task = next(task for task in tasks_of("humaneval+") if task.entry_point == "find_zero")
    assert failing(judge, [task]) == []
    assert do_not_pass(judge, [task], "    return 0.5\n")


# Whatever a benchmark's own tests forget to assert, one of these would pass. None of them reads its arguments.
STUBS = ("return None", "return object()", "raise ValueError")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "humaneval+", "mbpp", "mbpp-sanitized", "mbpp+"])
def test_no_stub_passes_any_task(name: str) -> None:
    tasks = tasks_of(name)
    with Judge(workers=2, limits=Limits(seconds=60.0, memory_mb=4096)) as judge:
        for stub in STUBS:
            stubs = [(task, f"def {task.entry_point}(*arguments, **named):\n    {stub}\n") for task in tasks]
            passed = [task.task_id for task, verdict in zip(tasks, judge.grade(stubs), strict=True) if verdict.passed]
            assert passed == [], stub
