"""What a user's module registers is known to every command, and to the worker processes of studies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ra3gym.errors import ConfigError
from ra3gym.plugins import import_plugins

PLUGIN = """
from pathlib import Path

from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.agents.mid_training import Recipe, distill, register_e_step, register_m_step
from ra3gym.experiments.studies import Arm, register_arm

class EveryLine:
    def infer(self, traces, rng):
        paths = [LatentPath((3,) * len(t.steps), (True,) * len(t.steps)) for t in traces]
        return Annotations(tuple(paths), ((),) * 4)

class Greeting:
    # Asks for the arm's model, and says with a comment how large it is.
    def for_model(self, loaded):
        self.comment = f"# {loaded.model.config.hidden_size} wide"
        return self

    def infer(self, traces, rng):
        paths = [LatentPath((1,) * len(t.steps), (True,) + (False,) * (len(t.steps) - 1)) for t in traces]
        return Annotations(tuple(paths), ((), ()), comments=("", self.comment))

def noted(model, documents, config, *, seed, on_progress):
    with Path("trained.txt").open("a") as file:
        print(len(documents), max(map(len, documents)), seed, config.tokens, file=file)
    return distill(model, documents, config, seed=seed, on_progress=on_progress)

register_e_step("every-line-of-mine", EveryLine)
register_e_step("greeting", Greeting)
register_arm(Arm("greeted", "Greeted", "method", "#654321", "With comments.", Recipe("inferred"), e_step="greeting"))
register_m_step("noted", noted)
register_arm(Arm("paused-twice", "Mine", "control", "#123456", "Twice as long.", Recipe("pause", budget=2.0)))
"""
OPTIONS = (
    *("--plugins", "mine_for_test", "--e-step", "every-line-of-mine", "--m-step-name", "noted", "--seeds", "3"),
    *("--arms", "latents,paused-twice,greeted", "--rlvr-arms", "latents", "--rlvr.steps", "0"),
    *("--domain.length", "3", "--domain.difficulty", "easy"),
    *("--domain.num-compositions", "12", "--domain.num-held-out", "2", "--domain.num-traces", "30"),
    *("--domain.num-base-traces", "30", "--model.hidden", "16", "--model.heads", "2", "--model.layers", "1"),
    *("--m-step.tokens", "1500", "--base.tokens", "1000", "--evaluation.samples", "2", "--workers", "1"),
    *("--evaluation.curve-points", "1", "--rlvr.max-new-tokens", "16"),
)


def test_a_study_uses_a_users_e_step_m_step_and_arm(tmp_path: Path) -> None:
    (tmp_path / "mine_for_test.py").write_text(PLUGIN)
    done = subprocess.run(
        [sys.executable, "-m", "ra3gym", "run", "quickstart", *OPTIONS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["plugins"] == ["mine_for_test"]
    rows = [json.loads(line) for line in (run / "traces" / "seed-3.jsonl").read_text().splitlines()]
    assert {latent for row in rows for latent in row["latents"]} == {3}
    assert all(f"<|z3|>{line}" in row["text"] for row in rows for line in row["lines"])
    trained = [tuple(map(int, line.split())) for line in (tmp_path / "trained.txt").read_text().splitlines()]
    budgets = [(count, seed, tokens) for count, _, seed, tokens in trained]
    assert budgets == [(30, 3, 1500), (30, 3, 3000), (30, 3, 1500)]
    assert trained[0][1] == max(len(row["input_ids"]) for row in rows) == trained[1][1]
    own = [json.loads(line) for line in (run / "traces" / "seed-3-greeted.jsonl").read_text().splitlines()]
    assert all("    # 16 wide\n" in row["text"] for row in own)
    assert "paused-twice" in done.stdout
    assert json.loads((run / "results" / "seed-3" / "paused-twice.json").read_text())["scores"]["tokens"] >= 3000
    assert "Mine" in (run / "report.html").read_text()


def test_what_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="'broken_for_test': ZeroDivisionError"):
        import_plugins(["broken_for_test"])
    with pytest.raises(ConfigError, match="no_such_module_at_all"):
        import_plugins(["no_such_module_at_all"])


TASKS = """
from ra3gym.tasks import CodeTask, FunctionTests, register_tasks

def increments():
    yield CodeTask("increments/0", "def inc(x):\\n", "inc", FunctionTests(((1,),), (2,)))

register_tasks("increments", increments)
"""


def test_commands_know_a_users_task_set(tmp_path: Path) -> None:
    (tmp_path / "tasks_for_test.py").write_text(TASKS)
    sample = {"task_id": "increments/0", "completion": "    return x + 1\n"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    evaluation = ["eval", "--model", "embedded", "--n", "1", "--k", "1", "--max-new-tokens", "4"]
    for command in (["judge", "samples.jsonl"], evaluation):
        done = subprocess.run(
            [sys.executable, "-m", "ra3gym", *command, "--tasks", "increments", "--plugins", "tasks_for_test"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "increments" in done.stdout
    (result,) = (tmp_path / "samples_results.jsonl").read_text().splitlines()
    assert json.loads(result)["passed"]
