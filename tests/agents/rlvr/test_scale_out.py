"""Two processes under `accelerate launch` do what one does with the whole batch; losing one loses no work."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.rlvr import RLVRStep, train
from ra3gym.lm import LoadedModel
from tests.agents.rlvr.bandits import QUICK, TASKS, tiny, writes_an_a

ROOT = Path(__file__).resolve().parents[3]
TWO = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *TWO, "--main_process_port", "0"]
    return subprocess.run(
        [*command, "-m", "tests.agents.rlvr.scale_out", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def alone(name: str) -> tuple[LoadedModel, list[RLVRStep]]:
    config = replace(QUICK, steps=3, tasks_per_step=4)
    result = train(tiny(kv_heads=1), TASKS, algorithm=name, config=config, reward=writes_an_a, seed=2)
    return result.loaded, list(result.history)


def assert_close(folder: Path, expected: LoadedModel) -> None:
    weights = lm.load(folder / "model").model.state_dict()
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "reinforce++", "ppo"])
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path, name: str) -> None:
    ended = launch(tmp_path, name)
    assert ended.returncode == 0, ended.stderr
    expected, history = alone(name)
    rewards = [round(step.reward, 6) for step in history]
    assert ended.stdout.splitlines().count(f"finished True {rewards}") == 2
    assert_close(tmp_path, expected)


def test_shards_are_one_model(tmp_path: Path) -> None:
    ended = launch(tmp_path, "grpo", "shards", "die-at=2")
    assert ended.returncode != 0
    resumed = launch(tmp_path, "grpo", "shards", "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_close(tmp_path, alone("grpo")[0])


def test_a_lost_process_ends_the_run_and_resuming_completes_it(tmp_path: Path) -> None:
    ended = launch(tmp_path, "grpo", "die-at=2")
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr
    resumed = launch(tmp_path, "grpo", "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_close(tmp_path, alone("grpo")[0])
