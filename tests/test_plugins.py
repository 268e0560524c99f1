"""A user's E-step in a study: its workers are processes of their own and must know it too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ra3gym.errors import ConfigError
from ra3gym.plugins import import_plugins

PLUGIN = """
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.abstractions.latents import Annotations
from ra3gym.agents.mid_training import register_e_step

class EveryLine:
    def infer(self, traces, rng):
        paths = [LatentPath((3,) * len(t.steps), (True,) * len(t.steps)) for t in traces]
        return Annotations(tuple(paths), ((),) * 4)

register_e_step("every-line-of-mine", EveryLine)
"""
OPTIONS = (
    *("--plugins", "mine_for_test", "--e-step", "every-line-of-mine", "--seeds", "3", "--arms", "latents"),
    *("--rlvr-arms", "latents", "--rlvr.steps", "0", "--domain.length", "3", "--domain.difficulty", "easy"),
    *("--domain.num-compositions", "12", "--domain.num-held-out", "2", "--domain.num-traces", "30"),
    *("--domain.num-base-traces", "30", "--model.hidden", "16", "--model.heads", "2", "--model.layers", "1"),
    *("--m-step.tokens", "1500", "--base.tokens", "1000", "--evaluation.samples", "2", "--workers", "1"),
    *("--evaluation.curve-points", "1", "--rlvr.max-new-tokens", "16"),
)


def test_workers_know_a_users_e_step(tmp_path: Path) -> None:
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


def test_what_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="'broken_for_test': ZeroDivisionError"):
        import_plugins(["broken_for_test"])
    with pytest.raises(ConfigError, match="no_such_module_at_all"):
        import_plugins(["no_such_module_at_all"])
