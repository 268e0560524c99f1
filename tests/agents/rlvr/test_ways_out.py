"""However a run ends, its last whole step is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ra3gym.agents.rlvr import RLVRStep, algorithm, register_objective, train
from ra3gym.agents.rlvr.health import TooFewRewards
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler
from ra3gym.errors import ConfigError, RunFolderError, SamplerError, TrainingDiverged
from tests.agents.rlvr.bandits import QUICK, TASKS, allowed, tiny, writes_an_a

CONFIG = replace(QUICK, steps=6, checkpoint_every=20)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def without_times(history: Any) -> list[RLVRStep]:
    return [replace(step, sample_seconds=0.0, train_seconds=0.0) for step in history]


def assert_continues(folder: Path) -> None:
    """The run resumes where it ended, and is the uninterrupted one."""
    resumed = train(tiny(), TASKS, config=CONFIG, reward=writes_an_a, folder=folder, resume=True)
    whole = train(tiny(), TASKS, config=CONFIG, reward=writes_an_a)
    assert without_times(resumed.history) == without_times(whole.history)
    for name, weight in resumed.loaded.model.state_dict().items():
        assert torch.equal(weight, whole.loaded.model.state_dict()[name])


def test_a_run_that_ends_leaves_a_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    train(tiny(), TASKS, config=CONFIG, reward=writes_an_a, folder=tmp_path)
    assert stored(tmp_path) == ["step-000006"]


@pytest.mark.parametrize("error", [KeyError("a callback's"), KeyboardInterrupt()])
def test_an_exception_between_two_steps(tmp_path: Path, error: BaseException) -> None:
    def die(step: RLVRStep) -> None:
        if step.step == 3:
            raise error

    with pytest.raises(type(error)):
        train(tiny(), TASKS, config=CONFIG, reward=writes_an_a, folder=tmp_path, on_step=die)
    assert stored(tmp_path) == ["step-000003"]
    assert_continues(tmp_path)


def test_rewards_that_fail(tmp_path: Path) -> None:
    calls = 0

    def fails_later(task: Any, text: str) -> float:
        nonlocal calls
        calls += 1
        return writes_an_a(task, text) if calls <= 3 * 8 else float("nan")

    with pytest.raises(TooFewRewards, match="step 4"):
        train(tiny(), TASKS, config=CONFIG, reward=fails_later, folder=tmp_path)
    assert stored(tmp_path) == ["step-000003"]
    assert_continues(tmp_path)


@pytest.mark.parametrize("method", ["sample", "update"])
def test_a_sampler_that_fails(tmp_path: Path, method: str) -> None:
    class Fails(ModelSampler):
        calls = 0

    def fail(self: Fails, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls > 2:
            raise SamplerError("the server is gone")
        return getattr(ModelSampler, method)(self, *args, **options)

    setattr(Fails, method, fail)
    with pytest.raises(SamplerError):
        train(tiny(), TASKS, config=CONFIG, reward=writes_an_a, folder=tmp_path, sampler=Fails())
    assert stored(tmp_path) == ["step-000002"]
    assert_continues(tmp_path)


def test_nothing_is_stored_before_the_first_step_or_amid_an_update(tmp_path: Path) -> None:
    def broken(task: Any, text: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), TASKS, config=CONFIG, reward=broken, folder=tmp_path / "first")
    assert stored(tmp_path / "first") == []
    calls = 0

    def dies_in_its_second_update(logp_RT: Any, old_logp_RT: Any, advantage_RT: Any, acts_RT: Any, chosen: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        return -logp_RT * advantage_RT, torch.zeros_like(acts_RT)

    register_objective("dies", dies_in_its_second_update)
    config = replace(CONFIG, group_size=16)
    with pytest.raises(MemoryError):
        train(
            tiny(),
            TASKS,
            algorithm=algorithm("grpo", objective="dies", updates_per_batch=2),
            config=config,
            reward=writes_an_a,
            folder=tmp_path / "amid",
        )
    assert stored(tmp_path / "amid") == [], "the weights are neither those of step 1 nor of step 2"


def test_a_policy_that_has_collapsed_keeps_its_earlier_checkpoints(tmp_path: Path) -> None:
    loaded = tiny()
    config = replace(CONFIG, min_entropy=1e-3, patience=3, checkpoint_every=2, keep_checkpoints=1)
    with pytest.raises(TrainingDiverged, match="collapsed"):
        train(loaded, TASKS, config=config, reward=writes_an_a, allowed_mask_V=allowed(loaded), folder=tmp_path)
    assert stored(tmp_path) == ["step-000002", "step-000003"]


def test_spoiled_weights_are_not_stored(tmp_path: Path) -> None:
    loaded: Any = tiny()

    def spoil(step: RLVRStep) -> None:
        if step.step == 3:
            loaded.model.lm_head.weight.data.fill_(float("nan"))

    config = replace(CONFIG, checkpoint_every=2)
    with pytest.raises(TrainingDiverged, match="step 4"):
        train(loaded, TASKS, config=config, reward=writes_an_a, folder=tmp_path, on_step=spoil)
    assert stored(tmp_path) == ["step-000002"]


def test_a_run_is_continued_with_more_steps(tmp_path: Path) -> None:
    run: dict[str, Any] = {"reward": writes_an_a, "folder": tmp_path, "resume": True}
    train(tiny(), TASKS, config=replace(CONFIG, steps=4), reward=writes_an_a, folder=tmp_path)
    for name, value in (("learning_rate", 1.0), ("group_size", 8), ("schedule", "linear")):
        with pytest.raises(RunFolderError, match=rf"another config\.{name} "):
            train(tiny(), TASKS, config=replace(CONFIG, steps=4, **{name: value}), **run)
    with pytest.raises(ConfigError, match="has done 4 steps"):
        train(tiny(), TASKS, config=replace(CONFIG, steps=3), **run)
    assert_continues(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 6
