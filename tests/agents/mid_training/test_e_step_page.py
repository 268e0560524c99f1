"""The plug-ins of docs/e-step.md, run as they stand there: complete files of under 40 lines."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ra3gym import lm
from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.mid_training import elbo_gap, make_e_step, make_inference_agent
from ra3gym.agents.mid_training.e_steps.registry import E_STEPS
from ra3gym.agents.mid_training.inference.agents import AGENTS
from ra3gym.agents.mid_training.inference.posteriors import UniformPosterior
from ra3gym.agents.mid_training.m_step import M_STEPS, MStepConfig, MStepProgress, make_m_step
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.tasks import ExpertTrace

PAGE = Path(__file__).resolve().parents[3] / "docs" / "e-step.md"
E_STEP, ARM, AGENT, EM = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plug-in registers is forgotten after the test."""
    for registry in (E_STEPS, AGENTS, M_STEPS, ARMS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def imported(source: str, folder: Path) -> ModuleType:
    file = folder / "plugin.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("plugin", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", [E_STEP, ARM, AGENT])
def test_plug_ins_are_short(source: str) -> None:
    assert len(source.splitlines()) < 40


def test_own_e_step(traces: list[ExpertTrace], tmp_path: Path) -> None:
    imported(E_STEP, tmp_path)
    found = make_e_step("indent").infer(traces, np.random.default_rng(0))
    assert [len(path.latents) for path in found.paths] == [len(trace.steps) for trace in traces]
    assert len({latent for path in found.paths for latent in path.latents}) > 1


def test_own_m_step_and_arm(traces: list[ExpertTrace], tokenizer: Any, tmp_path: Path) -> None:
    imported(ARM, tmp_path)
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0)
    documents = [tokenizer.encode(trace.task.canonical_program) for trace in traces[:20]]
    course: list[MStepProgress] = []
    config = MStepConfig(tokens=2000)
    seen = make_m_step("curriculum")(model, documents, config, seed=0, on_progress=course.append)
    assert 2000 <= seen < 2000 + 2 * (512 + max(map(len, documents)))
    assert 1000 <= course[-1].tokens < seen
    assert ARMS["macro"].e_step in E_STEPS


def test_own_agent(tmp_path: Path) -> None:
    """The page's actor-critic closes most of the gap on a planted problem."""
    imported(AGENT, tmp_path)
    rng = np.random.default_rng(0)
    emission_UK = np.log(0.7 * np.eye(4)[[0, 1, 2, 3]] + 0.3 / 4)
    emissions = [emission_UK[np.repeat(rng.integers(4, size=4), 2)] for _ in range(30)]
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.6, 4), emissions))
    uniform = elbo_gap(problem, UniformPosterior(4), rng, samples=20)
    learned = elbo_gap(problem, make_inference_agent("actor-critic").fit(problem, rng), rng, samples=20)
    assert learned < 0.2 * uniform


def test_em_of_the_page(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["iteration", "iteration", "1", "2"]
