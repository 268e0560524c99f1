"""`ra3gym judge` on real files, each call a process of its own, and the parts of it that hold by themselves."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ra3gym.experiments.commands.judge import JudgingConfig, Sample, graded, read_samples
from ra3gym.experiments.commands.task_sets import tasks_by_id
from ra3gym.tasks import load_tasks
from ra3gym.verify import Grader, Judge, pass_at_k

TASKS = [
    {
        "task_id": f"small/{number}",
        "prompt": f'def add(x):\n    """{number} more than x."""\n',
        "entry_point": "add",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
    }
    for number in range(3)
]
RIGHT, WRONG = "    return x + {}\n", "    return x - 1\n"


def sample(number: int, completion: str = RIGHT, **fields: Any) -> dict[str, Any]:
    return {"task_id": f"small/{number}", "completion": completion.format(number), **fields}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ra3gym", "judge", *map(str, arguments), "--tasks", "small.jsonl", "--workers", "1"]


def judge(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, check=False)


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three tasks in small.jsonl."""
    write_jsonl(tmp_path / "small.jsonl", TASKS)
    return tmp_path


def test_verdicts_come_in_order_beside_the_fields_of_the_file(folder: Path) -> None:
    samples = [sample(n, RIGHT if (n + m) % 3 else WRONG, note=[m, None]) for m in range(20) for n in (2, 0, 1)]
    samples[4] = {"task_id": "small/0", "solution": "def add(x):\n    return x\n", "completion": "wrong"}
    samples[5] = sample(1, "    return x +")
    write_jsonl(folder / "samples.jsonl", samples)
    done = judge(folder, "samples.jsonl")
    assert done.returncode == 0, done.stderr
    results = read_jsonl(folder / "samples_results.jsonl")
    told = ("passed", "status", "message", "score")
    assert [{name: value for name, value in result.items() if name not in told} for result in results] == samples
    assert all(set(told) <= set(result) for result in results)

    tasks = tasks_by_id(load_tasks(folder / "small.jsonl"), "small")
    with Judge(workers=1) as direct:
        verdicts = direct.grade([(task, program) for _, task, program in read_samples(folder / "samples.jsonl", tasks)])
    assert [[result[name] for name in told] for result in results] == [
        [verdict.passed, verdict.status, verdict.message, verdict.score] for verdict in verdicts
    ]
    assert results[4]["passed"]
    assert results[5]["status"] == "syntax_error"

    correct = [sum(one["passed"] for one in results if one["task_id"] == f"small/{n}") for n in range(3)]
    rows = [line.split() for line in done.stdout.splitlines()]
    for k in (1, 10):
        mean = 100 * pass_at_k(20, correct, k).mean()
        assert any(row[:2] == [str(k), f"{mean:.1f}"] for row in rows)
    assert "60 samples of 3 tasks" in done.stdout
    assert f"passed {sum(correct)}, wrong_answer {59 - sum(correct)}, syntax_error 1" in done.stdout
    assert "pass@100 is left out: 3 of 3 tasks have fewer than 100 samples" in done.stdout
    assert "all 3 tasks were attempted" in done.stdout


def test_pass_at_k_is_over_the_tasks_with_samples_and_only_where_all_have_enough(folder: Path) -> None:
    with gzip.open(folder / "samples.jsonl.gz", "wt") as file:
        file.writelines(
            json.dumps(one) + "\n\n" for one in [sample(0), sample(0, WRONG), sample(0, WRONG), sample(2), sample(2)]
        )
    done = judge(folder, "samples.jsonl.gz", "--k", "3,2,1")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if len(row) > 2 and row[0] in ("1", "2", "3")] == [["1", "66.7"], ["2", "83.3"]]
    assert "pass@3 is left out: 1 of 2 tasks have fewer than 3 samples (small/2 has 2)" in done.stdout
    assert "not all tasks were attempted: 1 of 3 have no samples" in done.stdout
    assert "small/1" in done.stdout
    assert len(read_jsonl(folder / "samples_results.jsonl")) == 5


def test_nothing_is_overwritten_unless_asked_for(folder: Path) -> None:
    write_jsonl(folder / "samples.jsonl", [sample(0)])
    (folder / "samples_results.jsonl").write_text("precious")
    refused = judge(folder, "samples.jsonl")
    assert refused.returncode == 1
    assert "add --overwrite" in refused.stderr
    assert (folder / "samples_results.jsonl").read_text() == "precious"

    assert judge(folder, "samples.jsonl", "--output", "elsewhere.jsonl.gz").returncode == 0
    with gzip.open(folder / "elsewhere.jsonl.gz", "rt") as file:
        assert json.loads(file.read())["passed"]
    assert judge(folder, "samples.jsonl", "--overwrite").returncode == 0
    assert read_jsonl(folder / "samples_results.jsonl")[0]["passed"]

    same = judge(folder, "samples.jsonl", "--output", "./samples.jsonl", "--overwrite")
    assert (same.returncode, read_jsonl(folder / "samples.jsonl")) == (1, [sample(0)])
    assert "holds the samples" in same.stderr


GOOD = json.dumps(sample(0))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (f"{GOOD}\n{{", ("bad.jsonl, line 2", "not JSON")),
        (f"{GOOD}\n[1]\n", ("bad.jsonl, line 2", "must be a JSON object, got list")),
        (f'{GOOD}\n\n{{"completion": ""}}\n', ("bad.jsonl, line 3", "'task_id' is missing")),
        ('{"task_id": [3], "completion": ""}', ("line 1", "'task_id': must be a string, got list")),
        ('{"task_id": true, "completion": ""}', ("line 1", "'task_id': must be a string, got bool")),
        ('{"task_id": "small/0"}', ("line 1", "'completion'", "'solution'")),
        ('{"task_id": "small/0", "completion": null}', ("line 1", "'completion'")),
        ('{"task_id": "small/0", "completion": ["x"]}', ("line 1", "'completion': must be a string, got list")),
        ('{"task_id": "small/0", "solution": 1}', ("line 1", "'solution': must be a string, got int")),
        ('{"task_id": "smal/2", "completion": ""}', ("bad.jsonl", "no task 'smal/2'", "did you mean 'small/2'?")),
        ('{"task_id": "", "completion": ""}', ("bad.jsonl", "no task ''", "its ids are like 'small/0'")),
        ("", ("bad.jsonl holds no samples",)),
        (b"\xff\xfe", ("bad.jsonl", "cannot be read")),
    ],
)
def test_a_bad_file_is_told_in_one_line_before_anything_runs(
    folder: Path, content: str | bytes, named: Sequence[str]
) -> None:
    (folder / "bad.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    assert_one_line(judge(folder, "bad.jsonl"), named)
    assert {file.name for file in folder.iterdir()} == {"small.jsonl", "bad.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("none.jsonl",), ("no such file: none.jsonl",)),
        (("samples.txt",), ("samples.txt", "unknown kind of file", ".jsonl.gz")),
        (("broken.jsonl.gz",), ("broken.jsonl.gz", "cannot be read")),
        (("good.jsonl", "--k", "0"), ("k=(0,)", "at least 1")),
        (("good.jsonl", "--workers", "0"), ("workers=0", "at least 1")),
        (("good.jsonl", "--seconds", "0"), ("seconds must be positive",)),
        (("good.jsonl", "--output", "none/results.jsonl"), ("cannot write none/results.jsonl", "--output")),
        (("good.jsonl", "--output", "."), ("is a folder",)),
        (("good.jsonl", "--tasks", "humanevil"), ("unknown task set 'humanevil'", "Did you mean")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_told_in_one_line(folder: Path, arguments: Sequence[str], named: Sequence[str]) -> None:
    write_jsonl(folder / "good.jsonl", [sample(0)])
    (folder / "broken.jsonl.gz").write_text("not gzip")
    before = sorted(folder.iterdir())
    given = [*command(arguments[0]), *arguments[1:]]
    assert_one_line(subprocess.run(given, cwd=folder, capture_output=True, text=True, check=False), named)
    assert sorted(folder.iterdir()) == before


def assert_one_line(done: subprocess.CompletedProcess[str], named: Sequence[str]) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    for part in named:
        assert part in done.stderr


def test_samples_of_unknown_tasks_are_left_out_with_a_warning(folder: Path) -> None:
    write_jsonl(folder / "samples.jsonl", [sample(0), sample(7), sample(7), sample(1, WRONG), sample(8)])
    done = judge(folder, "samples.jsonl", "--k", "1")
    assert done.returncode == 0, done.stderr
    assert [line["task_id"] for line in read_jsonl(folder / "samples_results.jsonl")] == ["small/0", "small/1"]
    assert "warning: 3 samples are not graded and without a verdict: 'small.jsonl' has no task 'small/7'" in done.stdout
    assert "unknown too: small/8" in done.stdout
    assert "2 samples of 2 tasks" in done.stdout


@pytest.mark.parametrize("given", [1, "1", "own/1", 1.0])
@pytest.mark.parametrize("of_task", [1, "1", "own/1"])
def test_a_task_goes_by_its_number(folder: Path, of_task: Any, given: Any) -> None:
    task = {"task_id": of_task, "prompt": "def inc(x):\n", "entry_point": "inc", "inputs": [[1]], "outputs": [2]}
    write_jsonl(folder / "own.jsonl", [task])
    write_jsonl(folder / "samples.jsonl", [{"task_id": given, "completion": "    return x + 1\n"}])
    tasks = tasks_by_id(load_tasks(folder / "own.jsonl"), "own")
    ((_, found, _),) = read_samples(folder / "samples.jsonl", tasks)
    assert [found] == list(tasks.values())


@pytest.mark.parametrize(("size", "left"), [(1_000, False), (100_000, True)])
def test_a_full_disk_is_told_in_one_line_and_loses_no_verdict(folder: Path, size: int, left: bool) -> None:
    samples = [sample(n % 3, note="x" * 4000) for n in range(40)]
    write_jsonl(folder / "samples.jsonl", samples)

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        command("samples.jsonl"), cwd=folder, capture_output=True, text=True, check=False, preexec_fn=fill_the_disk
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write ")
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "samples_results.jsonl.part").exists() == left
    if left:
        assert "samples_results.jsonl.part" in done.stderr
        *whole, _ = (folder / "samples_results.jsonl.part").read_text(encoding="utf-8").splitlines()
        assert len(whole) >= 20
        assert all(json.loads(line)["passed"] for line in whole)
    assert not list(folder.glob(".*.tmp"))


def test_interrupted_it_leaves_nothing_behind(folder: Path) -> None:
    write_jsonl(folder / "samples.jsonl", [sample(0, f"    while True: pass  # {n}\n") for n in range(2000)])
    running = subprocess.Popen(command("samples.jsonl", "--seconds", 0.3), cwd=folder, stderr=subprocess.PIPE)
    while not list(folder.glob(".*.tmp")):
        assert running.poll() is None
        os.sched_yield()
    running.send_signal(signal.SIGINT)
    _, told = running.communicate()
    assert (running.returncode, told) == (130, b"")
    assert {file.name for file in folder.iterdir()} == {"small.jsonl", "samples.jsonl"}


def test_few_samples_are_read_ahead_of_those_graded(folder: Path) -> None:
    write_jsonl(folder / "samples.jsonl", [sample(n % 3) for n in range(3000)])
    tasks = tasks_by_id(load_tasks(folder / "small.jsonl"), "small")
    read = 0

    def counted() -> Iterator[Sample]:
        nonlocal read
        for one in read_samples(folder / "samples.jsonl", tasks):
            read += 1
            yield one

    with Judge(workers=1) as direct:
        for done, (record, _, verdict) in enumerate(graded(counted(), Grader(direct), batch_size=4), start=1):
            assert verdict.passed
            assert record.place.endswith(f"line {done}")
            assert read - done < 200
    assert read == 3000


def test_results_lie_beside_the_samples() -> None:
    for name in ("a/samples.jsonl", "a/samples.jsonl.gz"):
        assert JudgingConfig(file=Path(name), tasks="humaneval").results == Path("a/samples_results.jsonl")


def test_the_isolation_is_the_one_asked_for_and_told(folder: Path) -> None:
    write_jsonl(folder / "samples.jsonl", [sample(0)])
    isolation = "process-as-root" if os.geteuid() == 0 else "process"
    done = judge(folder, "samples.jsonl", "--isolation", isolation)
    assert done.returncode == 0, done.stderr
    assert f"isolation='{isolation}'" in done.stdout
    assert read_jsonl(folder / "samples_results.jsonl")[0]["passed"]
