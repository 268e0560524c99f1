"""The real command line, each call a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ra3gym import __version__, lm
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.tasks import load_tasks
from ra3gym.verify import Judge

ADD_ONE = {
    "task_id": "small/0",
    "prompt": 'def add_one(x):\n    """One more than x."""\n',
    "entry_point": "add_one",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "canonical_solution": "    return x + 1\n",
}
ANYTHING = {
    "task_id": "small/1",
    "prompt": 'def anything(x):\n    """Whatever you like."""\n',
    "entry_point": "anything",
    "test": "def check(candidate):\n    pass\n",
    "canonical_solution": "    return x\n",
}


def ra3gym(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, without network and without a terminal."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    environment.pop("RA3GYM_DATA", None)
    command = [sys.executable, "-m", "ra3gym", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "small.jsonl", [ADD_ONE, ANYTHING])


def evaluate(model: Path, tasks: Path | str, folder: Path, *options: object) -> tuple[Path, str]:
    """A successful evaluation's folder and output."""
    arguments = ("eval", "--model", model, "--tasks", tasks, "--n", 6, "--k", "1,4", "--max-new-tokens", 24)
    done = ra3gym(*arguments, *options, folder=folder)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("Run folder: "))
    return folder / line.removeprefix("Run folder: "), done.stdout


def test_eval_writes_samples_verdicts_and_a_summary(tiny_model_folder: Path, tasks_file: Path, tmp_path: Path) -> None:
    run, printed = evaluate(tiny_model_folder, tasks_file, tmp_path, "--batch-size", 4, "--seed", 3)
    files = {file.name for file in run.iterdir()}
    assert files == {"config.json", "manifest.json", "samples.jsonl", "results.jsonl", "summary.json"}

    samples, results = read_jsonl(run / "samples.jsonl"), read_jsonl(run / "results.jsonl")
    assert [sample["task_id"] for sample in samples] == ["small/0"] * 6 + ["small/1"] * 6
    assert all(set(sample) == {"task_id", "completion"} for sample in samples)
    assert samples == [{name: result[name] for name in ("task_id", "completion")} for result in results]
    assert not any("<|" in sample["completion"] for sample in samples)

    tasks = {task.task_id: task for task in load_tasks(tasks_file)}
    with Judge(workers=1) as judge:
        verdicts = judge.grade(
            [(tasks[one["task_id"]], tasks[one["task_id"]].prompt + one["completion"]) for one in samples]
        )
    told = [(result["passed"], result["status"], result["score"], result["message"]) for result in results]
    assert told == [(verdict.passed, verdict.status, verdict.score, verdict.message) for verdict in verdicts]

    summary = json.loads((run / "summary.json").read_text())
    passed = sum(result["passed"] for result in results)
    assert summary["statuses"].get("passed", 0) == passed
    assert summary["pass_at_k"]["1"]["mean"] == pytest.approx(passed / 12)
    pass_at_4 = summary["pass_at_k"]["4"]
    assert 0 <= summary["pass_at_k"]["1"]["mean"] <= pass_at_4["mean"] <= 1
    assert pass_at_4["low"] is pass_at_4["high"] is None  # two tasks give no interval
    assert summary["prompt_too_long"] == []
    assert json.loads((run / "config.json").read_text())["k"] == [1, 4]

    assert "2/2" in printed
    assert "pass@k %" in printed
    table = printed[printed.index("tasks, 6 samples each") : printed.index("\nSamples and verdicts")]
    shown_again = ra3gym("report", run, folder=tmp_path)
    assert shown_again.returncode == 0
    assert table.strip() in shown_again.stdout


def test_eval_gives_the_same_samples_for_the_same_seed_and_never_overwrites(
    tiny_model_folder: Path, tasks_file: Path, tmp_path: Path
) -> None:
    one, _ = evaluate(tiny_model_folder, tasks_file, tmp_path)
    same, _ = evaluate(tiny_model_folder, tasks_file, tmp_path)
    other, _ = evaluate(tiny_model_folder, tasks_file, tmp_path, "--seed", 1)
    assert len({one, same, other}) == 3
    texts = [(run / "samples.jsonl").read_text() for run in (one, same, other)]
    assert texts[0] == texts[1] != texts[2]


def test_eval_tells_of_prompts_that_the_context_is_too_short_for(tiny_model_folder: Path, tmp_path: Path) -> None:
    loaded = lm.load(tiny_model_folder)
    positions: int = loaded.model.config.max_position_embeddings
    tasks = [ADD_ONE]
    for name, room in (("full", 0), ("over", -5), ("tight", 7)):
        prompt = 'def add_one(x):\n    """'
        while len(lm.encode_prompt(loaded.tokenizer, prompt + 'z"""\n')) <= positions - room:
            prompt += "z"
        prompt += '"""\n'
        assert len(lm.encode_prompt(loaded.tokenizer, prompt)) == positions - room
        tasks.append(ADD_ONE | {"task_id": name, "prompt": prompt})
    run, printed = evaluate(tiny_model_folder, write_jsonl(tmp_path / "long.jsonl", tasks), tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["prompt_too_long"] == ["full", "over"]
    assert summary["shortened"] == {"tight": 7}
    assert summary["statuses"]["prompt_too_long"] == 12
    assert "2 task(s) count as failed" in printed
    results = read_jsonl(run / "results.jsonl")
    assert len(results) == 24
    assert {result["completion"] for result in results if result["task_id"] in ("full", "over")} == {""}


EVAL = ("eval", "--model", "MODEL", "--tasks", "TASKS")


@pytest.mark.parametrize(
    ("arguments", "named", "way_out"),
    [
        (
            ("evaluate",),
            "unknown command 'evaluate'",
            "known: doctor, envs, eval, inspect, judge, play, report, rlvr, run, study",
        ),
        (("run", "quikstart"), "unknown study 'quikstart'", "Did you mean 'quickstart'?"),
        (("run", "quickstart", "--arms", "ntp,ra4"), "unknown arm 'ra4'", "known: base, brite, latents"),
        (("run", "quickstart", "--m-step.tokens", 100), "tokens=100 is smaller than one batch", "raise tokens"),
        (("run", "quickstart", "--resume", "."), ". is not a run", "start a new run by leaving the folder out"),
        (("run", "quickstart", "--resume", "x", "--seeds", 3), "--resume", "leave the other options out"),
        (("report", "no/such/run"), "no/such/run is not a run", "Give the folder that `ra3gym run` printed"),
        ((*EVAL, "--n", 5), "k=10 is larger than n=5", "raise --n or lower --k"),
        ((*EVAL, "--temperature", 0), "temperature=0", "--n 1 --k 1"),
        ((*EVAL, "--judge-seconds", 0), "seconds must be positive", "0"),
        ((*EVAL, "--device", "abacus"), "cannot use the device 'abacus'", "'cpu' works everywhere"),
        (("eval", "--model", "MODEL", "--tasks", "humanevil"), "unknown task set 'humanevil'", "Did you mean"),
        (("eval", "--model", "MODEL", "--tasks", "none.jsonl"), "no such file", "none.jsonl"),
        (("eval", "--model", "MODEL", "--tasks", "empty.jsonl"), "'empty.jsonl' holds no tasks", ""),
        (("eval", "--model", "MODEL", "--tasks", "twice.jsonl"), "'small/0' occurs 2 times", "an id of its own"),
        (("eval", "--model", "MODEL", "--tasks", "humaneval"), "cannot get 'humaneval'", "RA3GYM_DATA"),
        (("eval", "--model", "./none", "--tasks", "TASKS"), "no model at none", "no such folder or file"),
        (("eval", "--model", "no-such-model", "--tasks", "TASKS"), "'no-such-model'", "a folder written by"),
        (("eval", "--model", "TASKS", "--tasks", "TASKS"), "small.jsonl is a file", "give the folder"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_in_one_line_with_the_way_out(
    arguments: tuple[object, ...],
    named: str,
    way_out: str,
    tiny_model_folder: Path,
    tasks_file: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.jsonl").touch()
    write_jsonl(tmp_path / "twice.jsonl", [ADD_ONE, ADD_ONE])
    places = {"MODEL": tiny_model_folder, "TASKS": tasks_file}
    done = ra3gym(*(places.get(str(one), one) for one in arguments), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert way_out in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_help_and_version(tmp_path: Path) -> None:
    assert ra3gym("--version", folder=tmp_path).stdout == f"ra3gym {__version__}\n"
    commands = ra3gym(folder=tmp_path).stdout
    assert commands == ra3gym("--help", folder=tmp_path).stdout
    for command in ("run", "eval", "judge", "report", "envs", "play", "doctor"):
        assert f"\n  {command} " in commands
        helped = ra3gym(command, "--help", folder=tmp_path)
        assert helped.returncode == 0
        assert f"usage: ra3gym {command}" in helped.stdout


def test_the_arms_are_listed(tmp_path: Path) -> None:
    helped = ra3gym("run", "--help", folder=tmp_path).stdout
    for arm in ARMS:
        assert f"\n  {arm} " in helped


@pytest.mark.parametrize(("command", "number"), [("eval", 16), ("judge", 10)])
def test_every_option_is_explained(command: str, number: int, tmp_path: Path) -> None:
    helped = ra3gym(command, "--help", folder=tmp_path).stdout
    options = helped.split("│ --")[1:]
    assert len(options) >= number
    for option in options:
        words = option.replace("│", " ").partition("(default")[0].split()
        assert len(words) > 6, option


def test_a_wrong_flag_is_named(tmp_path: Path) -> None:
    done = ra3gym("run", "quickstart", "--sedes", 3, folder=tmp_path)
    assert done.returncode == 2
    assert "--sedes" in done.stderr
    assert "Traceback" not in done.stderr


PLUGIN = """
import gymnasium as gym
gym.register("mine/OptionMDP-v0", entry_point="ra3gym.envs.option_mdp.env:OptionMDPEnv")
"""


def test_plug_ins_are_imported_by_the_commands_about_environments(tmp_path: Path) -> None:
    (tmp_path / "own_environments.py").write_text(PLUGIN, encoding="utf-8")
    plugins = ("--plugins", "own_environments")
    shown = ra3gym("envs", "mine/OptionMDP-v0", *plugins, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "mine/OptionMDP-v0" in shown.stdout
    played = ra3gym("play", "mine/OptionMDP-v0", "--policy", "random", "--steps", 1, *plugins, folder=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "step 1: action" in played.stdout
    for command in (("envs",), ("play", "mine/OptionMDP-v0"), ("inspect", "traces", ".")):
        missing = ra3gym(*command, "--plugins", "none_such", folder=tmp_path)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert missing.stderr.startswith("error: cannot import the plug-in 'none_such'")
