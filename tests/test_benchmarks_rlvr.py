"""The benchmark of RLVR steps: what it poses, what it makes of the times, and small runs of the script itself."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ra3gym import lm

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "rlvr.py"


@pytest.fixture(autouse=True, scope="module")
def beside_the_script() -> Iterator[None]:
    """The benchmarks import each other as a script does, from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    return importlib.import_module("rlvr_cases")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("rlvr")


@pytest.fixture(scope="module")
def tiny(cases: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.tiny_case(tmp_path_factory.mktemp("tiny"), steps=3, seed=0, shape=cases.QUICK)


def test_random_words_are_a_token_each_and_no_special_one(tiny: Any, cases: ModuleType) -> None:
    tokenizer = lm.load(tiny.model).tokenizer
    assert [len(step) for step in tiny.prompts] == [cases.QUICK.prompts] * 3
    assert tiny.rows == cases.QUICK.prompts * cases.QUICK.group_size
    for prompt in {prompt for step in tiny.prompts for prompt in step}:
        ids = lm.encode_prompt(tokenizer, prompt)
        # TRL calls the tokenizer itself: both systems must see the same prompt.
        assert ids == tokenizer(prompt)["input_ids"]
        assert len(ids) == cases.QUICK.prompt_tokens
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_prompts_repeat_by_their_seed(cases: ModuleType) -> None:
    first, again, other = (cases.embedded_case(4, seed).prompts for seed in (0, 0, 1))
    assert first == again != other
    assert all(len(set(step)) == 16 for step in first)


def test_pieces_of_source_have_the_tokens_asked_for(cases: ModuleType, tiny_model_folder: Path, tmp_path: Path) -> None:
    case = cases.smollm2_case(tiny_model_folder, tmp_path / "copy", steps=3)
    tokenizer = lm.load(case.model).tokenizer
    assert {len(tokenizer(prompt)["input_ids"]) for step in case.prompts for prompt in step} == {96}
    assert len({prompt for step in case.prompts for prompt in step}) == 6


def test_reward_is_the_share_of_even_tokens(cases: ModuleType) -> None:
    assert cases.even_share(["a", "b", "c"], [[2, 4, 1, 3], [6], []]) == [0.5, 1.0, 0.0]


def test_the_judge_rewards_what_passes_a_tasks_tests(cases: ModuleType) -> None:
    case = cases.embedded_case(1, seed=0, judge=True)
    tokenizer = lm.load("embedded").tokenizer
    task = next(task for task in cases.load_tasks("idioms") if task.canonical_solution)
    right = [
        *tokenizer.encode(task.canonical_solution, add_special_tokens=False),
        tokenizer.eos_token_id,
    ]
    with cases.reward_of(case, tokenizer) as reward:
        assert reward([task.prompt] * 3, [right, right[:2], []]) == [1.0, 0.0, 0.0]


def _step(system: str, number: int, seconds: float, **others: Any) -> dict[str, Any]:
    work = {"rows": 8, "tokens": 64, "grad_norm": 1.0, "phases": {"generate": seconds / 2}}
    memory = {"loaded_mb": 100.0, "peak_mb": 100.0 + 10 * number}
    return {"system": system, "step": number, "seconds": seconds, "cpu_seconds": 2 * seconds} | work | memory | others


def test_times_are_compared_within_a_step(benchmark: ModuleType, tiny: Any) -> None:
    times = {("TRL", 0): 90.0, ("ra3gym", 0): 1.0, ("TRL", 1): 6.0, ("ra3gym", 1): 2.0, ("ra3gym", 2): 4.0}
    steps = [_step(system, number, seconds) for (system, number), seconds in times.items()]
    steps.append(_step("TRL", 2, 20.0))
    summary = benchmark.summarize(tiny, {"TRL": benchmark.Setting()}, steps)
    own, peer = summary["systems"]
    assert (own["system"], peer["system"]) == ("ra3gym", "TRL")
    assert peer["ratio"] == {"median": 4.0, "min": 3.0, "max": 5.0}
    assert own["seconds"]["median"] == 3.0
    assert own["samples_per_second"]["max"] == 4.0
    assert own["above_loaded_mb"] == 20.0
    assert peer["phases"] == {"generate": 6.5}
    assert benchmark.differences(summary) == []


@pytest.mark.parametrize(
    ("others", "said"),
    [({"tokens": 63}, "tokens 63"), ({"grad_norm": 2.5}, "grad norm 2.5"), ({"rows": 4}, "completions a step")],
)
def test_other_work_is_told(benchmark: ModuleType, tiny: Any, others: dict[str, Any], said: str) -> None:
    steps = [_step("ra3gym", 1, 1.0), _step("TRL", 1, 2.0, **others)]
    (found,) = benchmark.differences(benchmark.summarize(tiny, {"TRL": benchmark.Setting()}, steps))
    assert said in found


def test_what_ends_a_system_is_told(benchmark: ModuleType, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(benchmark.SystemEndedError, match=r"ours: [^$]*no model at"):
        benchmark.Running(benchmark.ours, replace(tiny, model=str(tmp_path / "nowhere")))


def _run(output: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def _check(result: dict[str, Any], cases: ModuleType, systems: list[str]) -> None:
    assert result.keys() >= {"machine", "versions", "options", "trl", "search", "steps", "summary", "different"}
    assert result["different"] == []
    shape = cases.QUICK
    rows = shape.prompts * shape.group_size
    assert len(result["steps"]) == 3 * len(systems)
    for step in result["steps"]:
        assert (step["rows"], step["tokens"]) == (rows, rows * shape.new_tokens)
        assert 0 < sum(step["phases"].values()) <= step["seconds"]
        assert step["grad_norm"] > 0
        assert math.isfinite(step["cpu_seconds"])
    (summary,) = result["summary"]
    assert [entry["system"] for entry in summary["systems"]] == systems


def test_smoke_run_of_our_own(tmp_path: Path, cases: ModuleType) -> None:
    result = _run(tmp_path / "rlvr.json", "--no-trl")
    _check(result, cases, ["ra3gym"])
    assert result["trl"] is None


def test_smoke_run_beside_trl(tmp_path: Path, cases: ModuleType) -> None:
    pytest.importorskip("trl")
    result = _run(tmp_path / "rlvr.json", "--no-search")
    _check(result, cases, ["ra3gym", "TRL"])
    assert result["summary"][0]["systems"][1]["setting"]["gradient_checkpointing"] is False


@pytest.mark.slow
def test_smoke_run_of_the_search(tmp_path: Path, cases: ModuleType) -> None:
    pytest.importorskip("trl")
    result = _run(tmp_path / "rlvr.json")
    _check(result, cases, ["ra3gym", "TRL"])
    theirs = [row for row in result["search"] if "setting" in row]
    ours = [row for row in result["search"] if "precision" in row]
    assert [row["setting"]["bf16"] for row in theirs] == [True, False]
    assert [row["precision"] for row in ours] == ["float32", "bfloat16"]
    (fastest, quicker) = (min(rows, key=lambda row: float(row["cpu_seconds"])) for rows in (theirs, ours))
    assert result["summary"][0]["systems"][1]["setting"] == fastest["setting"]
    assert result["summary"][0]["precision"] == quicker["precision"]


def test_an_unknown_choice_is_told() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--choices", "color"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: TRL has no choice color; there are bf16, parts, cache,")
