"""docs/rlvr.md: its programs run as they stand there but for their size, and every name on it exists."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ra3gym import lm
from ra3gym.agents import rlvr
from ra3gym.agents.rlvr import algorithm, algorithm_names, scope_names
from ra3gym.agents.rlvr.algorithms import composition
from ra3gym.cli import main
from ra3gym.experiments.commands.settings import parse_setting

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "rlvr.md").read_text()
TRAIN, PLUG_IN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
# Here, ahead of the first test: other tests register their own.
ALGORITHMS, SCOPES = algorithm_names(), scope_names()
SMALL = {
    '"mbpp", split="train"': '"jsonl:guess.jsonl"',
    "path/or/hub-id": "tiny",
    "steps=200": "steps=2, tasks_per_step=2, max_new_tokens=2",
}


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a model and tasks; what a plug-in registers is forgotten after the test."""
    (tmp_path / "tiny").symlink_to(tiny_model_folder)
    tasks = [
        {
            "task_id": f"guess/{number}",
            "prompt": f"def f(x):\n    return {number} if x else ",
            "entry_point": "f",
            "test": f"def check(candidate):\n    assert candidate(1) == {number}\n",
        }
        for number in range(2)
    ]
    (tmp_path / "guess.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry = importlib.import_module("ra3gym.agents.rlvr.algorithms.registry")
    monkeypatch.setattr(registry._ALGORITHMS, "_entries", dict(registry._ALGORITHMS._entries))
    monkeypatch.setattr(composition._ADVANTAGES, "_entries", dict(composition._ADVANTAGES._entries))
    yield tmp_path
    sys.modules.pop("best", None)


def table(heading: str) -> list[str]:
    """The names in the first column of the table under this heading."""
    rows = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"^\| `([^`]+)` ", row)]


def test_the_program_trains_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = TRAIN
    for size, smaller in SMALL.items():
        assert size in program
        program = program.replace(size, smaller)
    exec(compile(program, "docs/rlvr.md", "exec"), {})
    steps = [json.loads(line) for line in (folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert float(capsys.readouterr().out) == steps[-1]["pass_rate"]
    assert len(lm.load(folder / "runs" / "mine" / "model").tokenizer) == len(lm.load(folder / "tiny").tokenizer)


def test_an_algorithm_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(PLUG_IN.splitlines()) < 40
    (folder / "best.py").write_text(PLUG_IN)
    (line,) = re.findall(r"Saved as `best.py`: `ra3gym (rlvr [^`]*) \.\.\.`", PAGE)
    sizes = "--model tiny --tasks jsonl:guess.jsonl --steps 3 --tasks-per-step 2 --max-new-tokens 2 --group-size 6"
    options = f"{line} {sizes} --workers 1 --device cpu --learning-rate 1e-2 --min-entropy 0".split()
    assert main(options) == 0, capsys.readouterr().err
    (run,) = Path("runs").iterdir()
    pinned = json.loads((run / "manifest.json").read_text())["pinned"]
    assert pinned["algorithm"]["advantage"] == "best_of_group"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(step["informative"] > 0 for step in steps)
    assert all((step["grad_norm"] > 0) == (step["informative"] > 0) for step in steps)


def test_every_algorithm_and_every_scope_is_on_the_page() -> None:
    assert sorted(table("name")) == sorted(ALGORITHMS)
    assert sorted(table("`--act-on`")) == sorted(SCOPES)
    assert len(ALGORITHMS) == 11
    assert "any of eleven algorithms" in PAGE


def test_what_the_table_says_of_an_algorithm() -> None:
    told = {"length limit": "length", "rows of their means": "sequence", "tokens": "token"}
    for row in PAGE.split("\n| name |")[1].split("\n\n")[0].splitlines()[2:]:
        name, advantage, objective, mean = (cell.strip(" `") for cell in row.split("|")[1:5])
        found = algorithm(name)
        assert found.aggregation == told[mean], name
        assert ("policy gradient" in objective) == (found.objective == "policy_gradient"), name
        assert ("PPO's clip" in objective) == (found.objective == "ppo_clip"), name
        assert ("value head" in advantage) == found.needs_value, name
        assert ("k1" in advantage) == (name == "reinforce++"), name
        assert ("without signal are replaced" in objective) == found.dynamic_sampling, name
        assert ("four passes" in objective) == (found.updates_per_batch == 4), name


def test_every_option_and_setting_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["rlvr", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | {"--resume"}
    accelerate = {"--num_processes", "--use_fsdp", "--fsdp_version", "--multi_gpu", "--cpu"}
    page = re.sub(r"python benchmarks/\S+.*?(\n(?!        )|$)", "", PAGE, flags=re.DOTALL)  # scripts have their own
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", page))
    assert len(named - accelerate) > 10
    assert named - accelerate <= known
    settings = [part for found in re.findall(r"--set ((?:\w+=[\w.]+ ?)+)", PAGE) for part in found.split()]
    assert len(settings) > 4
    for setting in settings:
        algorithm("grpo", **dict([parse_setting(setting)]))


def test_every_name_and_file_exists() -> None:
    for name in re.findall(r"\b(register_\w+|rlvr\.[A-Za-z]\w+)\(", PAGE):
        assert hasattr(rlvr, name.removeprefix("rlvr.")), name
    for name in re.findall(r"`ra3gym\.agents\.rlvr\.(\w+)`", PAGE):
        assert hasattr(rlvr, name), name
    files = re.findall(r"`((?:tests|ra3gym)/[\w/]+\.py)`", PAGE)
    assert len(files) >= 3
    assert [file for file in files if not (ROOT / file).is_file()] == []
    for link in re.findall(r"\]\((?!https)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link


def test_the_commands_are_well_formed() -> None:
    """Those that are complete name a model, tasks and an algorithm that exist; no option stands twice."""
    lines = [shlex.split(line, comments=True) for line in PAGE.splitlines() if line.lstrip().startswith("ra3gym rlvr")]
    assert len(lines) == 4
    for words in lines:
        options = [word for word in words if word.startswith("--")]
        assert len(options) == len(set(options))
        assert "--resume" in options or {"--model", "--tasks"} <= set(options)
        if "--algorithm" in words:
            assert words[words.index("--algorithm") + 1] in ALGORITHMS
