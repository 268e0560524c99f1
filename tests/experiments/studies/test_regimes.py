"""The grid of regimes, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ra3gym.errors import ConfigError
from ra3gym.experiments.studies.config import StudyConfig
from ra3gym.experiments.studies.regimes import RegimesConfig

OPTIONS = {
    "documented": "0.5",
    "budgets": "1 2",
    "study.seeds": "0",
    "study.workers": 1,
    "study.domain.length": 2,
    "study.domain.num-compositions": 20,
    "study.domain.num-held-out": 2,
    "study.domain.num-traces": 40,
    "study.domain.num-base-traces": 20,
    "study.model.hidden": 16,
    "study.model.layers": 1,
    "study.model.heads": 2,
    "study.codebook.num-latents": 8,
    "study.codebook.restarts": 1,
    "study.codebook.iterations": 3,
    "study.base.tokens": 1000,
    "study.m-step.tokens": 1000,
    "study.rlvr.max-new-tokens": 16,
    "study.evaluation.samples": 1,
    "study.evaluation.curve-points": 1,
}


def ra3gym(*arguments: object, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ra3gym", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_grid_runs_resumes_and_is_shown_again(tmp_path: Path) -> None:
    options = [text for name, value in OPTIONS.items() for text in (f"--{name}", *str(value).split())]
    printed = ra3gym("run", "regimes", *options, folder=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    regimes = json.loads((run / "summary.json").read_text())["regimes"]
    assert [(one["documented"], one["tokens"]) for one in regimes] == [(0.5, 1000), (0.5, 2000)]
    for regime in regimes:
        assert set(regime["arms"]) == {"ntp", "pseudo", "ra3"}
        for scores in regime["arms"].values():
            assert scores["tokens"]["mean"] >= regime["tokens"]
        assert (run / regime["run"] / "report.html").is_file()
    table = printed[printed.index("pass@1 % after mid-training, by regime") :]
    assert table in ra3gym("report", run, folder=tmp_path)

    (run / regimes[1]["run"] / "summary.json").unlink()  # as if it had been killed at the very end
    assert table in ra3gym("run", "regimes", "--resume", run, folder=tmp_path)
    assert json.loads((run / "summary.json").read_text())["regimes"] == regimes
    ra3gym("run", "regimes", "--resume", run / regimes[0]["run"], folder=tmp_path)


@pytest.mark.parametrize("options", [{"documented": ()}, {"budgets": (0.0,)}, {"documented": (1.5,)}])
def test_bad_grids_are_refused(options: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError):
        RegimesConfig(study=StudyConfig(seeds=(0,), arms=("ntp",)), **options)
