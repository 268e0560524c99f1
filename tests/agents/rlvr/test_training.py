"""The main loop: it learns, it is the same run however it is cut up, interrupted or killed, and it stops in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.rlvr import RLVRConfig, RLVRStep, algorithm, algorithm_names, register_objective, train
from ra3gym.agents.rlvr.config import RLVRConfig as Config
from ra3gym.errors import ConfigError, DataError, RunFolderError, TrainingDiverged, UnknownNameError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask
from tests.agents.rlvr.bandits import QUICK, TASKS, allowed, tiny, writes_an_a


def weights_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in loaded.model.state_dict().items()}


def without_times(history: Any) -> list[RLVRStep]:
    return [replace(step, sample_seconds=0.0, train_seconds=0.0) for step in history]


def assert_same_weights(one: LoadedModel, other: LoadedModel, tolerance: float = 0.0) -> None:
    theirs = weights_of(other)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weight, theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_solves_the_bandit(name: str) -> None:
    loaded = tiny()
    config = replace(QUICK, steps=40, tasks_per_step=4, group_size=8, learning_rate=2e-2, max_new_tokens=4)
    result = train(
        loaded,
        TASKS,
        algorithm=algorithm(name, overlong_buffer=0),  # all completions here are as long as they may be
        config=config,
        reward=writes_an_a,
        allowed_mask_V=allowed(loaded, "a", "b"),
        seed=1,
    )
    assert result.history[0].reward < 0.5
    assert sum(step.reward for step in result.history[-5:]) / 5 > 0.85


@pytest.mark.parametrize("name", ["grpo", "ppo", "dapo", "gspo"])
def test_how_a_batch_is_cut_changes_nothing(name: str) -> None:
    results = []
    for rows, tokens in ((64, 16384), (4, 1), (8, 40)):
        loaded = tiny(kv_heads=1)
        config = replace(QUICK, steps=2, rows_per_sample=rows, tokens_per_forward=tokens, act_on="decisions")
        results.append(train(loaded, TASKS, algorithm=name, config=config, reward=writes_an_a, seed=3))
    for other in results[1:]:
        assert [step.tokens for step in other.history] == [step.tokens for step in results[0].history]
        assert_same_weights(other.loaded, results[0].loaded, 1e-5)


def test_a_seed_gives_one_run_and_another_seed_another() -> None:
    runs = [train(tiny(), TASKS, config=QUICK, reward=writes_an_a, seed=seed) for seed in (0, 0, 1)]
    assert without_times(runs[0].history) == without_times(runs[1].history)
    assert_same_weights(runs[0].loaded, runs[1].loaded)
    assert without_times(runs[0].history) != without_times(runs[2].history)


def test_the_callers_random_state_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny(), TASKS, config=replace(QUICK, steps=1), reward=writes_an_a)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"kl_coefficient": 0.1, "kl_estimator": "k3", "kl_place": "loss"}, {}])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    chosen = algorithm(name, **settings)
    whole = train(tiny(), TASKS, algorithm=chosen, config=QUICK, reward=writes_an_a, folder=tmp_path / "whole")

    class Killed(Exception):
        pass

    def die(step: RLVRStep) -> None:
        if step.step == 3:
            raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train(tiny(), TASKS, algorithm=chosen, config=QUICK, reward=writes_an_a, folder=folder, on_step=die)
    resumed = train(tiny(), TASKS, algorithm=chosen, config=QUICK, reward=writes_an_a, folder=folder, resume=True)
    assert resumed.finished
    assert without_times(resumed.history) == without_times(whole.history)
    assert_same_weights(resumed.loaded, whole.loaded)
    assert_same_weights(lm.load(folder / "model"), whole.loaded)
    logged = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4]


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    whole = train(tiny(), TASKS, config=QUICK, reward=writes_an_a)

    def die(step: RLVRStep) -> None:
        raise KeyError("dead")

    with pytest.raises(KeyError):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path, on_step=die)
    resumed = train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path, resume=True)
    assert without_times(resumed.history) == without_times(whole.history)


def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    def interrupt(step: RLVRStep) -> None:
        if step.step == 1:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path, on_step=interrupt)
    assert not stopped.finished
    assert len(stopped.history) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path, resume=True)
    whole = train(tiny(), TASKS, config=QUICK, reward=writes_an_a)
    assert without_times(resumed.history) == without_times(whole.history)


def test_checkpoints_are_plain_models_and_old_ones_go(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = replace(QUICK, steps=5, checkpoint_every=1, keep_checkpoints=2)
    result = train(tiny(), TASKS, config=config, reward=writes_an_a, folder=tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000005"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-000005" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert lm.latent_ids(tokenizer) == lm.latent_ids(result.loaded.tokenizer)
    assert_same_weights(LoadedModel(plain, tokenizer), result.loaded)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run"):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path / "new", resume=True)
    train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path / "old")
    with pytest.raises(RunFolderError, match="holds a run already"):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path / "old")
    with pytest.raises(RunFolderError, match="another seed"):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path / "old", resume=True, seed=1)
    state = tmp_path / "old" / "checkpoints" / "step-000004" / "state.pt"
    state.write_bytes(b"no zip")
    with pytest.raises(RunFolderError, match="damaged"):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, folder=tmp_path / "old", resume=True)


def test_a_frozen_decoder_writes_code_as_before() -> None:
    loaded = tiny()
    latents = lm.latent_ids(loaded.tokenizer)
    before = weights_of(loaded)

    def likes_the_second_latent(task: CodeTask, text: str) -> float:
        return float(text.startswith("<|z1|>"))

    mask_V = allowed(loaded, "a", "<|z0|>", "<|z1|>")
    config = replace(QUICK, steps=30, group_size=8, act_on="decisions", freeze_decoder=True, learning_rate=5e-2)
    result = train(loaded, TASKS, config=config, reward=likes_the_second_latent, allowed_mask_V=mask_V)
    assert sum(step.reward for step in result.history[-5:]) / 5 > 0.8
    after = weights_of(result.loaded)
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {"lm_head.weight"}
    rows = (before["lm_head.weight"] != after["lm_head.weight"]).any(1).nonzero()[:, 0].tolist()
    assert rows == latents
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    train(loaded, TASKS, config=replace(QUICK, steps=1), reward=lambda task, text: float(len(text) % 2))
    again = weights_of(loaded)
    assert all(not torch.equal(weight, again[name]) for name, weight in after.items())


def test_gradients_that_are_not_finite_stop_the_run() -> None:
    def explodes(logp_RT: Any, old_logp_RT: Any, advantage_RT: Any, acts_RT: Any, chosen: Any) -> Any:
        return logp_RT * float("inf"), torch.zeros_like(acts_RT)

    register_objective("explodes", explodes)
    loaded = tiny()
    before = weights_of(loaded)
    with pytest.raises(TrainingDiverged, match=r"step 1: gradient norm .* not finite.*first step"):
        train(loaded, TASKS, algorithm=algorithm("grpo", objective="explodes"), config=QUICK, reward=writes_an_a)
    for name, weight in weights_of(loaded).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_weights_that_are_not_finite_stop_the_run() -> None:
    loaded: Any = tiny()

    def spoil(step: RLVRStep) -> None:
        loaded.model.lm_head.weight.data.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match=r"step 2: the log-probability of a sampled token is not finite"):
        train(loaded, TASKS, config=QUICK, reward=writes_an_a, on_step=spoil)


def test_a_collapsed_policy_stops_the_run() -> None:
    loaded = tiny()
    mask_V = allowed(loaded)  # the end of text alone: nothing to choose
    config = replace(QUICK, steps=20, min_entropy=1e-3, patience=3)
    steps: list[RLVRStep] = []
    with pytest.raises(TrainingDiverged, match="collapsed"):
        train(loaded, TASKS, config=config, reward=writes_an_a, allowed_mask_V=mask_V, on_step=steps.append)
    assert len(steps) == 3
    config = replace(config, min_entropy=0.0, steps=4)
    assert train(loaded, TASKS, config=config, reward=writes_an_a, allowed_mask_V=mask_V).finished


def test_kl_holds_the_policy_to_where_it_began() -> None:
    def kl_at_the_end(coefficient: float) -> float:
        loaded = tiny()
        chosen = algorithm("grpo", kl_coefficient=coefficient, kl_estimator="k3", kl_place="loss")
        config = replace(QUICK, steps=15, group_size=8)
        kl = train(loaded, TASKS, algorithm=chosen, config=config, reward=writes_an_a).history[-1].kl
        assert kl is not None
        return kl

    assert kl_at_the_end(10.0) < 0.5 * kl_at_the_end(1e-6)


def test_refusals() -> None:
    with pytest.raises(DataError, match="no tasks"):
        train(tiny(), [], config=QUICK, reward=writes_an_a)
    with pytest.raises(UnknownNameError, match="grpo"):
        train(tiny(), TASKS, algorithm="grppo", config=QUICK, reward=writes_an_a)
    with pytest.raises(ConfigError, match="group_size=1"):
        train(tiny(), TASKS, config=replace(QUICK, group_size=1), reward=writes_an_a)
    with pytest.raises(ConfigError, match="folder"):
        train(tiny(), TASKS, config=QUICK, reward=writes_an_a, resume=True)
    for wrong in ({"steps": -1}, {"learning_rate": 0.0}, {"temperature": float("nan")}, {"group_size": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Config(**wrong)
    long = [replace(task, prompt="a" * 70) if index % 2 else task for index, task in enumerate(TASKS)]
    with pytest.raises(ConfigError, match=r"2 of 4 prompts, that of task 'bandit/1' first, leave less than max_new_t"):
        train(tiny(), long, config=QUICK, reward=writes_an_a)
    with pytest.raises(ConfigError, match="freeze_decoder"):
        RLVRConfig(freeze_decoder=True)


def test_schedules() -> None:
    config = RLVRConfig(steps=12, warmup_steps=2, learning_rate=1.0)
    assert [config.rate_at(step) for step in (1, 2, 3, 12)] == [0.5, 1.0, 1.0, 1.0]
    linear = replace(config, schedule="linear")
    assert [round(linear.rate_at(step), 6) for step in (1, 2, 3, 7, 12)] == [0.5, 1.0, 0.9, 0.5, 0.0]
    cosine = replace(config, schedule="cosine")
    assert cosine.rate_at(7) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_a_falling_rate_ends_at_0(schedule: Any, warmup_steps: int) -> None:
    config = RLVRConfig(steps=20, warmup_steps=warmup_steps, schedule=schedule, learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(1, 21)]
    assert max(rates) == rates[max(1, warmup_steps) - 1] == 1.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(before > after for before, after in pairwise(rates[max(1, warmup_steps) - 1 :]))
    assert replace(config, steps=1, warmup_steps=0).rate_at(1) == 1.0, "a single step trains"


def test_what_suits_the_model() -> None:
    assert RLVRConfig().for_model(tiny().model).tokens_per_forward == 4096
    assert RLVRConfig(tokens_per_forward=7).for_model(tiny().model).tokens_per_forward == 7
    assert RLVRConfig().for_model(tiny().model).learning_rate == 6e-4
    assert RLVRConfig(learning_rate=0.1).for_model(tiny().model).learning_rate == 0.1


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.agents.rlvr.bandits import QUICK, TASKS, tiny, writes_an_a
from ra3gym.agents.rlvr import train

folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
config = replace(QUICK, steps=60, checkpoint_every=1)
train(tiny(), TASKS, config=config, reward=writes_an_a, folder=folder, resume=resume,
      on_step=lambda step: print(step.step, flush=True))
"""


@pytest.mark.slow
def test_kill_9_five_times_at_random_moments(tmp_path: Path) -> None:
    """Each time the run is killed a random while after it has begun to step, often in the middle of a checkpoint."""
    import random

    whole = train(tiny(), TASKS, config=replace(QUICK, steps=60, checkpoint_every=60), reward=writes_an_a)
    root = Path(__file__).resolve().parents[3]
    random_moment = random.Random(0)
    folder = tmp_path / "run"
    for attempt in range(6):
        mode = "resume" if (folder / "manifest.json").exists() else "start"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder), mode],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if attempt == 5:
            assert process.wait() == 0
            break
        for _ in range(random_moment.randint(1, 8)):
            process.stdout.readline()
        try:
            process.wait(timeout=random_moment.uniform(0.0, 0.05))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert without_times(RLVRStep(**line) for line in lines) == without_times(whole.history)
    assert_same_weights(lm.load(folder / "model"), whole.loaded)
    assert not list(folder.rglob(".*.tmp"))
