"""`ra3gym study e-step` in miniature: both tables, the summary, and a resumption that measures nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = (
    *("--agents", "exact,viterbi,policy_gradient", "--traces", "20", "--e-steps", "exact,ast", "--study.seeds", "7"),
    *("--study.domain.length", "3", "--study.domain.difficulty", "easy", "--study.domain.num-compositions", "20"),
    *("--study.domain.num-held-out", "4", "--study.domain.num-traces", "60", "--study.domain.num-base-traces", "60"),
    *("--study.model.hidden", "32", "--study.model.layers", "1", "--study.m-step.tokens", "3000"),
    *("--study.base.tokens", "2000", "--study.codebook.num-latents", "8", "--study.codebook.restarts", "1"),
    *("--study.evaluation.samples", "2", "--study.evaluation.curve-points", "1", "--study.workers", "1"),
    *("--study.rlvr.max-new-tokens", "32"),
)


def study(*options: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ra3gym", "study", "e-step", *map(str, options)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("study")
    printed = study(*OPTIONS, folder=folder)
    (run,) = (folder / "runs").iterdir()
    return run, printed


def test_both_tables(finished: tuple[Path, str]) -> None:
    run, printed = finished
    summary = json.loads((run / "summary.json").read_text())
    gaps = {row["agent"]: row for row in summary["gaps"]}
    assert list(gaps) == ["uniform", "exact", "viterbi", "policy_gradient"]
    assert gaps["exact"]["gap"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert 0 < gaps["policy_gradient"]["share_of_uniform"] < 0.1
    assert gaps["policy_gradient"]["steps"] > 0
    assert [row["e_step"] for row in summary["pass@1"]] == ["exact", "ast"]
    assert all(row["seeds"] == [7] for row in summary["pass@1"])
    for heading in ("Gap to the exact posterior", "pass@1 % after the M-step"):
        assert heading in printed


def test_resuming_and_showing_again(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before = {file: file.stat().st_mtime_ns for file in [*run.glob("gaps/*/*.json"), *run.rglob("results/*/*.json")]}
    assert len(before) == 4 + 2
    summary = (run / "summary.json").read_text()
    study("--resume", run, folder=run.parent.parent)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (run / "summary.json").read_text() == summary
    shown = subprocess.run(
        [sys.executable, "-m", "ra3gym", "report", str(run)], capture_output=True, text=True, check=True
    ).stdout
    assert "Gap to the exact posterior" in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--agents", "sb3:PP0"), "sb3:PPO"), (("--e-steps", "exakt"), "exact"), (("--traces", "0"), "traces=0")],
)
def test_typical_mistakes(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ra3gym", "study", "e-step", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert not (tmp_path / "runs").exists()
