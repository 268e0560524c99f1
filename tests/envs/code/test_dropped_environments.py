"""An environment that is dropped without `close` leaves no judge: no processes, no threads, no open sockets."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from ra3gym import lm
from ra3gym.envs.code.problem import CodeConfig, CodeProblem
from tests.envs.code.code_vector_cases import TASKS

OPTIONS: dict[str, Any] = {"max_new_tokens": 1, "top_k": 2}


def children() -> set[str]:
    """Return the child processes of this process."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


def judge_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ra3gym-judge")}


def run_an_episode(folder: Path, form: str) -> None:
    """Grade a program in an environment that nobody closes, and check that its judge has started."""
    env: Any
    if form == "vector":
        env = gym.make_vec("ra3gym/TokenCode-v0", 2, model=str(folder), **OPTIONS)
    else:
        env = gym.make("ra3gym/TokenCode-v0", model=str(folder), **OPTIONS)
    before = children(), judge_threads()
    env.reset(seed=0)
    env.step(np.zeros(2, dtype=np.int64) if form == "vector" else np.int64(0))
    assert children() > before[0]
    assert judge_threads() > before[1]


@pytest.mark.parametrize("form", ["single", "vector"])
def test_a_dropped_environment_leaves_no_judge(tiny_model_folder: Path, form: str) -> None:
    """Even while the collector of reference cycles is off."""
    before = children(), judge_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.disable()
        try:
            run_an_episode(tiny_model_folder, form)
            assert (children(), judge_threads()) == before
        finally:
            gc.enable()


def test_a_closed_problem_that_grades_again_is_dropped_too(tiny_model_folder: Path) -> None:
    problem = CodeProblem(CodeConfig(lm.load(tiny_model_folder), TASKS))
    before = children()
    for _ in range(2):
        problem.submit(0, [], 0).result()
        problem.close()
        assert children() == before
    problem.submit(0, [], 0)
    del problem
    assert children() == before
