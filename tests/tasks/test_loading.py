"""Names, files, folders, splits and limits of `load_tasks`, and its errors."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.tasks import (
    AssertTests,
    CheckTests,
    CodeTask,
    ExpertTrace,
    FunctionTests,
    StdioTests,
    load_tasks,
    register_tasks,
)
from ra3gym.verify import Judge

HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": "def inc(x):\n",
    "entry_point": "inc",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add one.",
    "code": "def inc(x):\r\n  return x + 1",
    "test_setup_code": "",
    "test_list": ["assert inc(1) == 2", "assert inc(2) == 3"],
    "challenge_test_list": [],
}
FUNCTION = {"prompt": "def inc(x):\n", "entry_point": "inc", "inputs": [[1], [2]], "outputs": [2, 3]}


def write(file: Path, *rows: object) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RA3GYM_DATA", raising=False)


def test_ones_own_file_in_three_formats(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", HUMANEVAL, "\n", MBPP, FUNCTION)
    checked, asserted, called = tasks = load_tasks(f"jsonl:{file}")
    assert load_tasks(file) == load_tasks(str(file)) == tasks
    assert checked.task_id == "HumanEval/7"
    assert checked.tests == CheckTests(HUMANEVAL["test"])
    assert checked.canonical_program == "def inc(x):\n    return x + 1\n"
    assert asserted.tests == AssertTests(("assert inc(1) == 2", "assert inc(2) == 3"))
    assert (asserted.task_id, asserted.entry_point) == ("Mbpp/11", "inc")
    assert called.tests == FunctionTests(((1,), (2,)), (2, 3))
    assert called.task_id == "own/4"
    assert {task.source for task in tasks} == {str(file)}


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_limits_and_streaming(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, FUNCTION, FUNCTION, "not json\n")
    assert len(load_tasks(file, limit=2)) == 2
    stream = load_tasks(file, streaming=True)
    assert isinstance(stream, Iterator)
    assert (next(stream), next(stream)) == load_tasks(file, limit=2)
    with pytest.raises(DataError, match="line 3"):
        next(stream)


def test_json_lists_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([FUNCTION, HUMANEVAL]))
    assert [task.entry_point for task in load_tasks(tmp_path / "t.json")] == ["inc", "inc"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FUNCTION, FUNCTION]), tmp_path / "t.parquet")
    assert len(load_tasks(tmp_path / "t.parquet")) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops\n", r"bad\.jsonl, line 2: not JSON"),
        ("[1]\n", r"bad\.jsonl, line 2: must be a JSON object, got list"),
        ({"prompt": "x"}, "line 2: no tests: .* the record has prompt"),
        ({**HUMANEVAL, "prompt": None}, "line 2: field 'prompt' is missing; the record has task_id"),
        ({**HUMANEVAL, "prompt": 3}, "line 2: field 'prompt': must be a string, got int"),
        ({**HUMANEVAL, "entry_point": "a b"}, "field 'entry_point': must be a Python name, got 'a b'"),
        ({**HUMANEVAL, "test": "assert True"}, r"field 'test': must define check\(candidate\)"),
        ({**MBPP, "test_list": []}, "field 'test_list': is empty"),
        ({**MBPP, "test_list": ["assert 1", 2]}, "field 'test_list': item 1 must be a string, got int"),
        ({**MBPP, "test_list": ["assert dec(1) == 0"]}, "'test_list': the first test calls none of .*: inc"),
        ({**MBPP, "code": "def inc(x) return"}, "field 'code': is not Python"),
        ({**FUNCTION, "inputs": [1, 2]}, "field 'inputs': item 0 must be the list of arguments"),
        ({**FUNCTION, "inputs": "ab"}, "field 'inputs': must be a list, got str"),
        ({**FUNCTION, "outputs": [1]}, "field 'outputs': has 1 items for 2 inputs"),
        ({**FUNCTION, "inputs": [], "outputs": []}, "field 'inputs': is empty"),
        (
            {"prompt": "", "inputs": [[1]], "outputs": ["1"]},
            "'inputs': item 0 must be the text on stdin, or give 'entry",
        ),
        ({"prompt": "", "inputs": ["1"], "outputs": []}, "field 'outputs': has 0 items for 1 inputs"),
        ({**FUNCTION, "float_tolerance": -1}, "field 'float_tolerance': must be a number"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_tasks(write(tmp_path / "bad.jsonl", FUNCTION, row))


def test_files_whose_content_does_not_match_their_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_tasks(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no tasks"):
        load_tasks(write(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        load_tasks(write(tmp_path / "plain.jsonl", FUNCTION).rename(tmp_path / "t.jsonl.gz"))
    whole = write(tmp_path / "cut.jsonl.gz", *[FUNCTION] * 50)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        load_tasks(whole)
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        load_tasks(tmp_path / "latin.jsonl")
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(DataError, match="not a parquet file"):
        load_tasks(tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="must hold a list"):
        load_tasks(tmp_path / "t.json")


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, name: str) -> None:
    content = json.dumps([FUNCTION]) if name.endswith(".json") else json.dumps(FUNCTION) + "\n"
    marked = content.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert [task.entry_point for task in load_tasks(tmp_path / name)] == ["inc"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_another_encoding_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(json.dumps([FUNCTION]).encode("utf-16"))  # what PowerShell writes
    with pytest.raises(DataError, match=rf"{name}.*: cannot be read as UTF-8: .*; save it as UTF-8"):
        load_tasks(tmp_path / name)


def test_unknown_names_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown task set 'humanevl'; known: acecode, .*Did you mean 'humaneval'"
    ):
        load_tasks("humanevl")
    file = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    with pytest.raises(UnknownNameError, match="unknown split of 'humaneval' 'train'; known: test"):
        load_tasks("humaneval", split="train", path=file)


def test_options_that_a_set_does_not_take_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", FUNCTION)
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        load_tasks(file, limit=0)
    with pytest.raises(ConfigError, match="takes no 'split'"):
        load_tasks(file, split="test")
    with pytest.raises(ConfigError, match="takes no 'seed'"):
        load_tasks("humaneval", path=file, seed=3)
    with pytest.raises(ConfigError, match="'idioms' takes no 'path'"):
        load_tasks("idioms", path=file)


def test_the_embedded_domain_by_name() -> None:
    train, evaluation = load_tasks("idioms", split="train", limit=3), load_tasks("idioms", split="eval", limit=3)
    assert len(train) == len(evaluation) == 3
    assert {task.prompt for task in train}.isdisjoint(task.prompt for task in evaluation)
    assert load_tasks("idioms", limit=3) == evaluation


def test_a_registered_set_is_loaded_by_name_with_the_options_it_takes() -> None:
    def increments(split: str = "test", start: int = 0) -> Iterator[CodeTask]:
        for number in range(start, 3):
            yield CodeTask(f"{split}/{number}", "def inc(x):\n", "inc", FunctionTests(((number,),), (number + 1,)))

    register_tasks("increments", increments)
    assert [task.task_id for task in load_tasks("increments")] == ["test/0", "test/1", "test/2"]
    assert [task.task_id for task in load_tasks("increments", split="rl", start=1, limit=1)] == ["rl/1"]
    assert next(load_tasks("increments", streaming=True)).task_id == "test/0"
    with pytest.raises(ConfigError, match=r"'increments' does not take these options: .* 'seed'"):
        load_tasks("increments", seed=3)
    with pytest.raises(ConfigError, match=r"'increments' does not take these options: .* 'path'"):
        load_tasks("increments", path="f.jsonl")
    with pytest.raises(DataError, match="'increments' holds no tasks"):
        load_tasks("increments", start=3)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'increments'\? Add your own with .*register_tasks"):
        load_tasks("increment")


def test_a_data_folder_is_searched_by_the_usual_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "humaneval" / "HumanEval.jsonl.gz", HUMANEVAL)
    write(tmp_path / "mbpp.jsonl", MBPP, {**MBPP, "task_id": 601}, {**MBPP, "task_id": 3})
    monkeypatch.setenv("RA3GYM_DATA", str(tmp_path))
    (task,) = load_tasks("humaneval")
    assert (task.source, task.license) == ("openai/openai_humaneval", "MIT")
    assert [task.task_id for task in load_tasks("mbpp")] == ["Mbpp/11", "Mbpp/601", "Mbpp/3"]
    assert [task.task_id for task in load_tasks("mbpp", split="train")] == ["Mbpp/601"]
    assert [task.task_id for task in load_tasks("mbpp", split="prompt")] == ["Mbpp/3"]
    for name in ("3", "Mbpp/3"):
        write(tmp_path / "mbpp.jsonl", {**MBPP, "task_id": name})
        assert len(load_tasks("mbpp", split="prompt")) == 1
    write(tmp_path / "mbpp.jsonl", {**MBPP, "task_id": "three"})
    with pytest.raises(DataError, match="field 'task_id': must be the problem's number, got 'three'"):
        load_tasks("mbpp", split="prompt")
    write(tmp_path / "mbpp.jsonl", MBPP)
    with pytest.raises(DataError, match="'mbpp' holds no tasks"):
        load_tasks("mbpp", split="validation")
    monkeypatch.setenv("RA3GYM_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"RA3GYM_DATA=.* is not a folder"):
        load_tasks("humaneval")


def test_path_may_be_a_file_or_the_folder_that_holds_it(tmp_path: Path) -> None:
    file = write(tmp_path / "humaneval" / "HumanEval.jsonl", HUMANEVAL)
    assert load_tasks("humaneval", path=file) == load_tasks("humaneval", path=tmp_path)
    assert load_tasks("humaneval", path=file) == load_tasks("humaneval", path=file.parent)
    with pytest.raises(DataError, match=r"holds no file of 'mbpp'; looked for mbpp/mbpp\.jsonl"):
        load_tasks("mbpp", path=tmp_path)


def test_the_hub_comes_last_and_its_error_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for name in ("humaneval", "livecodebench"):
        with pytest.raises(DataError, match=f"cannot get '{name}' from the hub .* Give path=FILE, or set RA3GYM_DATA"):
            load_tasks(name)


def test_the_examples_of_the_docs_are_tasks(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    examples = page.partition("```json\n")[2].partition("```")[0]
    called, checked, reading = load_tasks(write(tmp_path / "mine.jsonl", examples))
    assert called.tests == FunctionTests(((1,), (2,)), (2, 3))
    assert isinstance(checked.tests, CheckTests)
    assert (reading.entry_point, reading.tests) == ("", StdioTests(("1\n", "2\n"), ("2\n", "3\n")))
    programs = ["    return x + 1\n", "    return x + 1\n", "print(int(input()) + 1)\n"]
    with Judge(workers=1) as judge:
        pairs = [(task, task.prompt + end) for task, end in zip((called, checked, reading), programs, strict=True)]
        assert all(verdict.passed for verdict in judge.grade(pairs))


def test_a_task_for_traces_needs_no_tests_and_is_never_graded() -> None:
    task = CodeTask("mine/1", "def inc(x):\n")
    assert ExpertTrace(task, ("    return x + 1\n",)).prompt == task.prompt
    with Judge(workers=1) as judge, pytest.raises(DataError, match="task 'mine/1' has no tests"):
        judge.grade([(task, "def inc(x):\n    return x + 1\n")])
