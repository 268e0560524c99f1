"""GRPO: advantages by hand, the gradient against whole sequences of logits, and rewards that rise."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ra3gym import lm
from ra3gym.agents import MStepConfig, RLVRConfig, distill, train_rlvr
from ra3gym.agents.rlvr import SampledPrograms, group_advantages, sample_programs
from ra3gym.agents.rlvr.trainer import _update
from ra3gym.errors import ConfigError, DataError
from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.verify import Judge, Limits

PROMPT = "def f(x):\n"
CHOICES = ("    return x\n", "    return -x\n")
LATENT = lm.latent_token(1)
SAME = CodeTask("choice/same", PROMPT, "f", FunctionTests(((1,), (-2,)), (1, -2)))
MINUS = CodeTask("choice/minus", PROMPT, "f", FunctionTests(((1,), (-2,)), (-1, 2)))
HOPELESS = CodeTask("choice/hopeless", PROMPT, "f", FunctionTests(((1,),), ("no",)))
QUICK = RLVRConfig(steps=50, tasks_per_step=2, group_size=8, learning_rate=1e-2, max_new_tokens=12)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=Limits(seconds=2.0, memory_mb=256)) as judge:
        yield judge


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = lm.train_tokenizer([PROMPT + choice for choice in CHOICES], vocab_size=280)
    lm.add_latents(None, tokenizer, 2)
    return tokenizer


@pytest.fixture(scope="module")
def undecided(tokenizer: Any) -> Any:
    """A model that writes each choice, behind a latent, about half of the time."""
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, max_length=64, seed=0)
    documents = [[*tokenizer.encode(PROMPT + LATENT + choice), tokenizer.eos_token_id] for choice in CHOICES]
    distill(model, documents * 8, MStepConfig(tokens=6000, learning_rate=2e-2, tokens_per_batch=64), seed=0)
    return model


def sampled(model: Any, tokenizer: Any, tasks: list[CodeTask], judge: Judge, group_size: int = 32) -> SampledPrograms:
    return sample_programs(
        model,
        tokenizer,
        tasks,
        judge,
        group_size=group_size,
        max_new_tokens=12,
        temperature=1.0,
        generator=torch.Generator().manual_seed(3),
    )


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1, 0.5, 0.5, 0, 0])
    high, low = 0.75 / (0.1875**0.5 + 1e-4), -0.25 / (0.1875**0.5 + 1e-4)
    half = 0.25 / (0.25 + 1e-4)
    expected = torch.tensor([high, low, low, low, 0, 0, 0, 0, half, half, -half, -half])
    torch.testing.assert_close(group_advantages(rewards, 4), expected)


REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4)


@given(st.lists(REWARDS, min_size=1, max_size=4), st.sampled_from([-2.0, 0.5, 4.0]), st.permutations(range(4)))
def test_advantages_within_groups(rewards: list[list[float]], shift: float, order: list[int]) -> None:
    reward_PG = torch.tensor(rewards)
    advantage_PG = group_advantages(reward_PG.flatten(), 4).view(-1, 4)
    torch.testing.assert_close(advantage_PG.sum(1), torch.zeros(len(rewards)), atol=1e-5, rtol=0)
    shifted = group_advantages(reward_PG.flatten() + shift, 4).view(-1, 4)
    torch.testing.assert_close(shifted, advantage_PG)
    permuted = group_advantages(reward_PG[:, order].flatten(), 4).view(-1, 4)
    torch.testing.assert_close(permuted, advantage_PG[:, order])
    for row, advantage in zip(rewards, advantage_PG, strict=True):
        assert bool(advantage.any()) == (len(set(row)) > 1)
        if len(set(row)) > 1:
            assert advantage.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_update_has_the_gradient_of_whole_sequences(tokenizer: Any, temperature: float) -> None:
    """Plain SGD at rate 1 moves the weights by minus the gradient, here taken row by row from all logits."""
    model = lm.tiny_llama(tokenizer, hidden=16, layers=2, heads=2, seed=1)
    prompts = [[5, 6, 7, 8], [9]]
    completions = ([10, 11], [12, 13, 14, 0], [15], [16, 17, 18])
    advantages = torch.tensor([1.5, -0.5, 0.0, 2.0])
    loss = torch.zeros(())
    for row, completion in enumerate(completions):
        prompt = prompts[row // 2]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)[range(len(completion)), completion]
        loss = loss - advantages[row] * logp.sum() / 10  # ten tokens were sampled, those of advantage 0 included
    expected = torch.autograd.grad(loss, list(model.parameters()))

    def moved(max_grad_norm: float) -> list[torch.Tensor]:
        trained = copy.deepcopy(model)
        config = RLVRConfig(group_size=2, temperature=temperature, max_grad_norm=max_grad_norm)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
        _update(trained, optimizer, prompts, SampledPrograms(completions, (), ()), advantages, config)
        assert not trained.training
        pairs = zip(model.parameters(), trained.parameters(), strict=True)
        return [(before - after).detach() for before, after in pairs]

    for got, want in zip(moved(1e9), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    clipped = torch.cat([change.flatten() for change in moved(0.01)])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_samples_are_judged_without_their_latents(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    programs = sampled(undecided, tokenizer, [SAME, HOPELESS, MINUS], judge)
    passed = [group.mean().item() for group in programs.passed_N.view(3, 32)]
    assert passed[1] == 0
    assert 0.2 < passed[0] < 0.8
    assert 0.2 < passed[2] < 0.8
    for text, ids, verdict in zip(programs.texts[:32], programs.completions, programs.verdicts, strict=False):
        assert verdict.passed == (lm.strip_latents(text) == CHOICES[0])
        assert not verdict.passed or (LATENT in text and ids[-1] == tokenizer.eos_token_id)
    joined = SampledPrograms.joined([programs, programs])
    assert joined.texts == programs.texts * 2
    assert len(joined.passed_N) == 2 * 96


def test_rewards_rise(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    for task in (SAME, MINUS):
        model = copy.deepcopy(undecided)
        history = train_rlvr(model, tokenizer, [task], judge, QUICK, seed=0)
        assert [step.step for step in history] == list(range(1, 51))
        assert history[0].reward < 0.8
        assert sum(step.reward for step in history[-10:]) / 10 > 0.9
        assert sampled(model, tokenizer, [task], judge).passed_N.mean() > 0.9


def test_the_seed_decides(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    def run(seed: int) -> tuple[Any, torch.Tensor]:
        model = copy.deepcopy(undecided)
        config = RLVRConfig(steps=3, tasks_per_step=2, group_size=4, max_new_tokens=12)
        history = train_rlvr(model, tokenizer, [SAME, MINUS], judge, config, seed=seed)
        return history, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    torch.manual_seed(1)
    history, weights = run(0)
    torch.manual_seed(2)
    same_history, same_weights = run(0)
    assert history == same_history
    assert torch.equal(weights, same_weights)
    assert not torch.equal(weights, run(1)[1])


def test_nothing_to_learn_changes_nothing(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    model = copy.deepcopy(undecided)
    config = RLVRConfig(steps=3, tasks_per_step=3, group_size=2, max_new_tokens=12)
    history = train_rlvr(model, tokenizer, [HOPELESS, HOPELESS], judge, config, seed=0)
    assert [step.reward for step in history] == [0, 0, 0]
    assert all(6 <= step.tokens <= 6 * 12 for step in history)  # three tasks a step though there are two
    for before, after in zip(undecided.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_progress_is_reported_step_by_step(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    reported: list[Any] = []
    config = RLVRConfig(steps=2, tasks_per_step=1, group_size=2, max_new_tokens=12)
    model = copy.deepcopy(undecided)
    assert train_rlvr(model, tokenizer, [SAME], judge, config, seed=0, on_step=reported.append) == reported
    assert all(before.step + 1 == after.step for before, after in pairwise(reported))
    assert train_rlvr(model, tokenizer, [SAME], judge, RLVRConfig(steps=0), seed=0) == []


def test_no_tasks(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    with pytest.raises(DataError, match="no tasks to train on"):
        train_rlvr(undecided, tokenizer, [], judge, QUICK, seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 1},
        {"steps": -1},
        {"tasks_per_step": 0},
        {"learning_rate": 0.0},
        {"temperature": 0.0},
        {"max_new_tokens": 0},
    ],
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        RLVRConfig(**options)
