"""Algorithms by name: what they compose, their weights that add up, and the errors of a wrong name or number."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ra3gym.agents.rlvr.algorithms import advantages, composition
from ra3gym.agents.rlvr.algorithms import registry as family
from ra3gym.agents.rlvr.algorithms.registry import (
    Algorithm,
    RolloutBatch,
    algorithm,
    algorithm_names,
    register_advantage,
    register_algorithm,
    register_objective,
    token_weights,
)
from ra3gym.errors import ConfigError, DataError, UnknownNameError

NAMES = (
    "reinforce",
    "reinforce++",
    "reinforce++_baseline",
    "rloo",
    "grpo",
    "grpo_token",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "ppo",
)
AGGREGATIONS = ("token", "sequence", "length")

# Two groups of two rows; every token is a decision, and the rows have 3, 2, 1 and 3 tokens.
LENGTHS = torch.tensor([3, 2, 1, 3])
ACTS = torch.arange(3) < LENGTHS[:, None]
REWARD = torch.tensor([1.0, 0.0, 1.0, 0.5])


def batch_of(reward: Tensor = REWARD, acts: Tensor = ACTS, **changes: Tensor) -> RolloutBatch:
    return RolloutBatch(reward_R=reward, group_size=2, acts_RT=acts, duration_RT=acts.float(), **changes)


def rows(*numbers: float) -> Tensor:
    """One number per row at each of its decisions."""
    return torch.tensor(numbers)[:, None] * ACTS


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(family._ALGORITHMS, "_entries", dict(family._ALGORITHMS._entries))
    monkeypatch.setattr(composition._ADVANTAGES, "_entries", dict(composition._ADVANTAGES._entries))
    monkeypatch.setattr(composition._OBJECTIVES, "_entries", dict(composition._OBJECTIVES._entries))


def test_the_family() -> None:
    assert algorithm_names() == NAMES
    assert [name for name in NAMES if algorithm(name).needs_value] == ["ppo"]
    assert not any(algorithm(name).needs_reference for name in NAMES)
    assert [name for name in NAMES if algorithm(name).dynamic_sampling] == ["dapo"]
    assert algorithm("rloo", kl_coefficient=0.01).needs_reference


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_survives_json(name) -> None:
    found = algorithm(name, gamma=0.99)
    assert Algorithm(**json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_advantages_of_the_group_methods() -> None:
    std = 0.5 / (0.5 + 1e-4), 0.25 / (0.25 + 1e-4)
    for name in ("grpo", "grpo_token", "dapo", "gspo", "cispo"):
        assert_close(algorithm(name).advantages(batch_of()), rows(std[0], -std[0], std[1], -std[1]))
    assert_close(algorithm("dr_grpo").advantages(batch_of()), rows(0.5, -0.5, 0.25, -0.25))
    assert_close(algorithm("rloo").advantages(batch_of()), rows(1.0, -1.0, 0.5, -0.5))
    assert_close(algorithm("reinforce").advantages(batch_of()), rows(1.0, 0.0, 1.0, 0.5))


def test_advantages_discounted() -> None:
    found = algorithm("dr_grpo", gamma=0.5).advantages(batch_of())
    assert_close(
        found, torch.tensor([[1 / 8, 1 / 4, 1 / 2], [-1 / 4, -1 / 2, 0], [1 / 4, 0, 0], [-1 / 16, -1 / 8, -1 / 4]])
    )


def test_reinforce_plus_plus_by_hand() -> None:
    """Per-token returns with -beta k1, then normalized over all nine decisions."""
    kl = torch.tensor([[1.0, 2, 3], [4, 5, 9], [6, 9, 9], [0, 1, 0]])  # the nines are padding
    returns = torch.tensor([[1 - 0.6, 1 - 0.5, 1 - 0.3], [-0.9, -0.5, 0], [1 - 0.6, 0, 0], [0.5 - 0.1, 0.5 - 0.1, 0.5]])
    values = returns[ACTS]
    expected = torch.where(ACTS, (returns - values.mean()) / (values.std(correction=0) + 1e-4), 0.0)
    chosen = algorithm("reinforce++", kl_coefficient=0.1)
    assert_close(chosen.advantages(batch_of(kl_RT=kl)), expected)
    # The variant with a baseline subtracts the group's mean reward first.
    centered = returns - rows(0.5, 0.5, 0.75, 0.75)
    values = centered[ACTS]
    expected = torch.where(ACTS, (centered - values.mean()) / (values.std(correction=0) + 1e-4), 0.0)
    chosen = algorithm("reinforce++_baseline", kl_coefficient=0.1, kl_place="reward", kl_estimator="k1")
    assert_close(chosen.advantages(batch_of(kl_RT=kl)), expected)


def test_kl_in_the_reward_of_whole_rows() -> None:
    """A row's decisions together pay for the row's KL."""
    kl = torch.tensor([[1.0, 2, 3], [4, 5, math.nan], [6, math.nan, math.nan], [0, 1, 0]])
    chosen = algorithm("rloo", kl_coefficient=0.1)
    assert_close(chosen.advantages(batch_of(kl_RT=kl)), rows(1.3, -1.3, 0.0, 0.0), atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="the batch has no KL"):
        chosen.advantages(batch_of())


def test_ppo_by_hand() -> None:
    """gamma = lambda = 1: the reward less the value, normalized; targets are the rewards, normalized or not."""
    value = torch.tensor([[0.5, 0.25, 0.75], [0, 1, 9], [0.5, 9, 9], [0, 0, 0.5]])
    raw = torch.where(ACTS, REWARD[:, None] - value, 0.0)
    plain = algorithm("ppo", advantage="gae")
    batch = batch_of(value_RT=value)
    assert_close(plain.advantages(batch), raw)
    found = algorithm("ppo").advantages(batch)
    assert_close(found, advantages.batch_normalized(raw, ACTS))
    for chosen in (plain, algorithm("ppo")):
        assert_close(chosen.returns(batch, chosen.advantages(batch)), rows(*REWARD.tolist()))
    with pytest.raises(DataError, match="needs a value head"):
        plain.advantages(batch_of())
    with pytest.raises(DataError, match="targets of a value head"):
        plain.returns(batch_of(), raw)


def test_returns_with_lambda() -> None:
    """R_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda R_{t+1})."""
    acts = torch.ones(2, 2, dtype=torch.bool)
    value = torch.tensor([[3.0, 0.5], [0.0, 0.0]])
    chosen = algorithm("ppo", gamma=0.5, lam=0.25)
    batch = batch_of(torch.tensor([1.0, 0.0]), acts, value_RT=value)
    assert_close(
        chosen.returns(batch, chosen.advantages(batch)), torch.tensor([[0.5 * (0.75 * 0.5 + 0.25 * 1.0), 1.0], [0, 0]])
    )


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_zero_outside_the_decisions_and_ignore_padding(name) -> None:
    chosen = algorithm(name, gamma=0.9)
    value = torch.linspace(0, 1, 12).view(4, 3)
    found = chosen.advantages(batch_of(value_RT=value))
    assert torch.equal(found[~ACTS], torch.zeros(3))
    assert found.dtype == torch.float32

    def wider(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 4), value=False if tensor.dtype == torch.bool else math.nan)

    padded = chosen.advantages(batch_of(acts=wider(ACTS), value_RT=wider(value)))
    assert_close(padded[:, :3], found)
    assert torch.equal(padded[:, 3:], torch.zeros(4, 4))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("reinforce", "ppo")])
@given(shift=st.integers(-3, 3))
def test_a_shift_of_all_rewards_changes_no_advantage_with_a_baseline(name, shift) -> None:
    chosen = algorithm(name)
    assert_close(chosen.advantages(batch_of(REWARD + shift)), chosen.advantages(batch_of()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_groups_and_of_their_rows_goes_through(name) -> None:
    chosen, value = algorithm(name), torch.linspace(0, 1, 12).view(4, 3)
    order = torch.tensor([3, 2, 0, 1])  # the second group first, its rows swapped
    found = chosen.advantages(batch_of(value_RT=value))
    moved = chosen.advantages(batch_of(REWARD[order], ACTS[order], value_RT=value[order]))
    assert_close(moved, found[order])


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_the_family_are_finite_and_only_at_decisions(name) -> None:
    rng = np.random.default_rng(0)
    old = torch.from_numpy(-rng.exponential(size=(4, 3))).float()
    logp = (old + 0.3 * torch.from_numpy(rng.normal(size=(4, 3))).float()).requires_grad_()
    loss, clipped = algorithm(name).token_losses(logp, old, torch.ones(4, 3), ACTS)
    assert clipped.dtype == torch.bool
    assert not clipped[~ACTS].any()
    assert torch.equal(loss[~ACTS], torch.zeros(3))
    loss.sum().backward()
    assert logp.grad is not None
    assert torch.equal(logp.grad[~ACTS], torch.zeros(3))
    unclipped = ACTS & ~clipped if name != "cispo" else ACTS
    assert bool((logp.grad[unclipped] < 0).all())


def test_clips_come_from_the_algorithm() -> None:
    """A ratio of 1.25 under a positive advantage: out of GRPO's range, inside DAPO's, far out of GSPO's."""
    old, logp = torch.zeros(1, 1), torch.full((1, 1), math.log(1.25))
    acts, advantage = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1)
    found = {
        name: algorithm(name).token_losses(logp, old, advantage, acts)[0].item() for name in ("grpo", "dapo", "gspo")
    }
    assert found == pytest.approx({"grpo": -1.2, "dapo": -1.25, "gspo": -1.0004})
    dual = algorithm("grpo", dual_clip=1.3).token_losses(logp + 1, old, -advantage, acts)
    assert dual[0].item() == pytest.approx(1.3)
    assert dual[1].item()


def test_weights_by_hand() -> None:
    totals = {"num_decisions": 9, "num_rows": 4, "max_new_tokens": 5}
    assert_close(token_weights(ACTS, "token", **totals), ACTS / 9)
    assert_close(token_weights(ACTS, "length", **totals), ACTS / 20)
    assert_close(token_weights(ACTS, "sequence", **totals), rows(1 / 12, 1 / 8, 1 / 4, 1 / 12))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_without_decisions_weigh_nothing(aggregation) -> None:
    acts = torch.zeros(2, 3, dtype=torch.bool)
    weights = token_weights(acts, aggregation, num_decisions=0, num_rows=2, max_new_tokens=3)
    assert torch.equal(weights, torch.zeros(2, 3))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=st.integers(0, 999), cut=st.integers(0, 5), columns=st.integers(0, 3))
def test_micro_batches_add_up(aggregation, seed, cut, columns) -> None:
    """In any cut, each part padded to its own length, the losses sum to that of the whole."""
    rng = np.random.default_rng(seed)
    acts = torch.from_numpy(rng.random((5, 4)) < rng.random((5, 1)))
    loss = torch.from_numpy(rng.normal(size=(5, 4)))
    totals = {"num_decisions": int(acts.sum()), "num_rows": 5, "max_new_tokens": 4}
    whole = (token_weights(acts, aggregation, **totals) * loss).sum()
    total = torch.zeros(())
    for part in (slice(0, cut), slice(cut, None)):
        padded = torch.nn.functional.pad(acts[part], (0, columns))
        weights = token_weights(padded, aggregation, **totals)
        assert torch.equal(weights[:, 4:], torch.zeros(len(padded), columns))
        total = total + (weights[:, :4] * loss[part]).sum()
    assert_close(total, whole, check_dtype=False, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@given(seed=st.integers(0, 999))
def test_means_of_a_constant_loss(aggregation, seed) -> None:
    acts = torch.from_numpy(np.random.default_rng(seed).random((4, 6)) < 0.5)
    acts[:, 0] = True
    weights = token_weights(acts, aggregation, num_decisions=int(acts.sum()), num_rows=4, max_new_tokens=6)
    assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.usefixtures("registries")
def test_parts_and_algorithms_of_ones_own() -> None:
    def best_of_group(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
        best = batch.reward_R.view(-1, batch.group_size).amax(1, keepdim=True).expand(-1, batch.group_size).flatten()
        return (batch.reward_R == best).float()[:, None].expand(batch.acts_RT.shape)

    def squared(
        logp: Tensor, old: Tensor, advantage: Tensor, acts: Tensor, algorithm: Algorithm
    ) -> tuple[Tensor, Tensor]:
        return algorithm.clip_low * (logp - old).square(), torch.ones_like(acts)

    register_advantage("best", best_of_group, needs_value=True)
    register_objective("squared", squared)
    register_algorithm(Algorithm(name="mine", advantage="best", objective="squared", clip_low=0.5))
    assert algorithm_names()[-1] == "mine"
    mine = algorithm("mine")
    assert mine.needs_value
    assert_close(mine.advantages(batch_of(value_RT=ACTS.float())), rows(1.0, 0.0, 1.0, 0.0))
    loss, clipped = mine.token_losses(torch.full((4, 3), 2.0), torch.zeros(4, 3), rows(1, 1, 1, 1), ACTS)
    assert_close(loss, rows(2.0, 2.0, 2.0, 2.0))
    assert torch.equal(clipped, ACTS)
    register_algorithm(algorithm("mine", clip_low=0.25))
    assert algorithm("mine").clip_low == 0.25
    assert algorithm_names().count("mine") == 1


@pytest.mark.usefixtures("registries")
def test_an_advantage_of_the_wrong_shape_is_named() -> None:
    register_advantage("flat", lambda batch, algorithm: batch.reward_R)
    with pytest.raises(DataError, match=r"advantage 'flat' returned shape \(4,\)"):
        algorithm("grpo", advantage="flat").advantages(batch_of())


def test_changes_leave_the_registered_algorithm_alone() -> None:
    changed = algorithm("grpo", clip_high=0.3)
    assert (changed.clip_high, algorithm("grpo").clip_high) == (0.3, 0.2)
    assert algorithm(changed, gamma=0.9).clip_high == 0.3
    assert algorithm(changed) == changed


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grppo", {}, r"unknown RLVR algorithm 'grppo'; known: .*Did you mean 'grpo'\? Add your own"),
        ("grpo", {"clip_hi": 0.3}, r"unknown field of an RLVR algorithm 'clip_hi'.*Did you mean 'clip_high'"),
        ("grpo", {"advantage": "group_centred"}, r"unknown advantage 'group_centred'.*'group_centered'"),
        ("grpo", {"objective": "ppo"}, r"unknown objective 'ppo'"),
        ("grpo", {"aggregation": "tokens"}, r"unknown aggregation 'tokens'; known: length, sequence, token"),
        ("grpo", {"kl_estimator": "k4"}, r"unknown KL estimator 'k4'"),
        ("grpo", {"kl_place": "none"}, r"unknown place for the KL 'none'; known: loss, reward"),
    ],
)
def test_unknown_names(name, changes, message) -> None:
    with pytest.raises(UnknownNameError, match=message):
        algorithm(name, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_low": 1.5}, r"clip_low=1.5 of algorithm 'grpo': give a number from 0 to 1"),
        ({"clip_low": -0.1}, "clip_low=-0.1"),
        ({"clip_high": math.nan}, "clip_high=nan .* give a number of at least 0$"),
        ({"clip_high": math.inf}, "clip_high=inf"),
        ({"clip_high": None}, "clip_high=None"),
        ({"clip_high": "0.2"}, "clip_high='0.2'"),
        ({"clip_high": True}, "clip_high=True"),
        ({"kl_coefficient": -1.0}, "kl_coefficient=-1.0"),
        ({"gamma": 0.0}, "gamma=0 .* above 0"),
        ({"gamma": -0.1}, "gamma=-0.1"),
        ({"gamma": 1.01}, "gamma=1.01"),
        ({"lam": 1.01}, "lam=1.01"),
        ({"off_policy_cap": 0.0}, "off_policy_cap=0 .* None switches it off"),
        ({"value_clip": 0}, "value_clip=0 .* None switches it off"),
        ({"dual_clip": math.nan}, "dual_clip=nan"),
        ({"overlong_buffer": math.inf}, "overlong_buffer=inf"),
        ({"dual_clip": 1.1}, r"inside the clip range: give more than 1 \+ clip_high = 1.2"),
        ({"overlong_buffer": 1.5}, "give whole tokens, or a share"),
        ({"overlong_buffer": -1}, "overlong_buffer=-1"),
        ({"updates_per_batch": 0}, "updates_per_batch=0"),
        ({"minibatches": 0}, "minibatches=0"),
        ({"minibatches": 1.5}, "minibatches=1.5 of algorithm 'grpo': give a whole number"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, "expected gradient is 0"),
        ({"objective": "policy_gradient", "minibatches": 2}, "makes 2 updates of a batch, but"),
    ],
)
def test_numbers_out_of_range(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithm("grpo", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acts_RT": ACTS.float()}, "give a bool mask"),
        ({"reward_R": torch.zeros(3)}, r"rewards of shape \(3,\) for 4 rows"),
        ({"group_size": 3}, "in groups of 3"),
        ({"duration_RT": torch.zeros(4, 2)}, r"durations of shape \(4, 2\)"),
        ({"duration_RT": torch.ones(4, 3)}, "durations do not fit the acts"),
        ({"duration_RT": torch.zeros(4, 3)}, "durations do not fit the acts"),
        ({"kl_RT": torch.zeros(4, 2)}, r"KL of shape \(4, 2\)"),
        ({"value_RT": torch.zeros(4)}, r"values of shape \(4,\)"),
    ],
)
def test_batches_that_do_not_fit(changes, message) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(batch_of(), **changes)
