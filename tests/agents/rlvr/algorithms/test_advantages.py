"""Advantages by hand, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ra3gym.agents.rlvr.algorithms.advantages import (
    batch_normalized,
    decision_rewards,
    discount_to_end,
    gae,
    group_centered,
    group_standardized,
    leave_one_out,
    returns_to_go,
    soft_overlong_punishment,
    tokens_to_end,
)
from ra3gym.errors import ConfigError, DataError

GROUP_METHODS = (group_centered, group_standardized, leave_one_out)

# Two rows of six tokens. The first decides at 0, 2 and 3 and ends behind token 4; the second decides at 1 only (its
# first token is context) and fills the row.
ACTS = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
DURATION = torch.tensor([[2.0, 0, 1, 2, 0, 0], [0, 5, 0, 0, 0, 0]])


def rewards_of_groups() -> st.SearchStrategy[tuple[Tensor, int]]:
    """(P * G,) rewards in steps of 1/8, so that sums are exact, and G."""
    sizes = st.tuples(st.integers(1, 3), st.integers(2, 6))
    rewards = st.integers(-16, 16)
    return sizes.flatmap(
        lambda size: st.tuples(
            st.lists(rewards, min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
                lambda numbers: torch.tensor(numbers) / 8.0
            ),
            st.just(size[1]),
        )
    )


@st.composite
def rows_of_decisions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(acts_RT, duration_RT) of rows of different lengths, padded; a row may have no decisions at all."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    T = max(*lengths, 1) + draw(st.integers(0, 3))
    acts, durations = torch.zeros(len(lengths), T, dtype=torch.bool), torch.zeros(len(lengths), T)
    for row, length in enumerate(lengths):
        at = sorted(draw(st.sets(st.integers(0, length - 1)))) if length else []
        for t, end in zip(at, [*at, length][1:], strict=True):
            acts[row, t], durations[row, t] = True, end - t
    return acts, durations


def random_like(acts: Tensor, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(acts.shape))).float()


def test_group_advantages_by_hand() -> None:
    reward = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    assert_close(group_centered(reward, 4), torch.tensor([0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5]))
    # 0.75 - (-1/4 of the others' sum): G / (G - 1) times the centered ones.
    assert_close(leave_one_out(reward, 4), torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3, 2 / 3, 2 / 3, -2 / 3, -2 / 3]))
    std = math.sqrt(3) / 4
    expected = torch.tensor([0.75 / std, *[-0.25 / std] * 3, 1, 1, -1, -1])
    assert_close(group_standardized(reward, 4, eps=0.0), expected)
    bessel = math.sqrt(3 / 4)
    assert_close(group_standardized(reward, 4, correction=1, eps=0.0), expected * bessel)
    assert_close(group_standardized(reward, 4)[4], torch.tensor(0.5 / (0.5 + 1e-4)))


@pytest.mark.parametrize("advantages", GROUP_METHODS)
@given(drawn=rewards_of_groups(), shift=st.integers(-8, 8), seed=st.integers(0, 99))
def test_groups_ignore_shifts_and_order(advantages, drawn, shift, seed) -> None:
    reward, size = drawn
    found = advantages(reward, size)
    assert_close(advantages(reward + shift, size), found)
    assert_close(found.view(-1, size).sum(1), torch.zeros(len(reward) // size), atol=1e-5, rtol=0)
    # Reordering a group reorders its advantages; reordering the groups reorders them.
    within = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    assert_close(
        advantages(reward.view(-1, size)[:, within].flatten(), size), found.view(-1, size)[:, within].flatten()
    )
    assert_close(advantages(reward.view(-1, size).flip(0).flatten(), size), found.view(-1, size).flip(0).flatten())


@given(drawn=rewards_of_groups(), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_scale_goes_through_all_but_the_standardized(drawn, scale) -> None:
    reward, size = drawn
    assert_close(group_centered(scale * reward, size), scale * group_centered(reward, size))
    assert_close(leave_one_out(scale * reward, size), scale * leave_one_out(reward, size))
    if all(len(set(group)) > 1 for group in reward.view(-1, size).tolist()):
        standardized = group_standardized(reward, size, eps=0.0)
        assert_close(group_standardized(scale * reward, size, eps=0.0), standardized)
        assert_close(standardized.view(-1, size).std(1, correction=0), torch.ones(len(reward) // size))


@pytest.mark.parametrize("advantages", GROUP_METHODS)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e4 / 3])
def test_equal_rewards_teach_exactly_nothing(advantages, reward) -> None:
    """Not even the rounding of the mean: dynamic sampling and the skipping of rows look for zeros."""
    for size in (3, 7, 8):
        assert torch.equal(advantages(torch.full((2 * size,), reward), size), torch.zeros(2 * size))


@pytest.mark.parametrize("advantages", GROUP_METHODS)
def test_rows_that_are_not_whole_groups(advantages) -> None:
    with pytest.raises(DataError, match="not whole groups of 3"):
        advantages(torch.zeros(4), 3)
    with pytest.raises(DataError, match="not whole groups of 2"):
        advantages(torch.zeros(2, 2), 2)


def test_leaving_one_out_needs_two() -> None:
    with pytest.raises(DataError, match="at least 2"):
        leave_one_out(torch.zeros(4), 1)


def test_tokens_to_end_by_hand() -> None:
    assert_close(tokens_to_end(DURATION, ACTS), torch.tensor([[4.0, 0, 2, 1, 0, 0], [0, 4, 0, 0, 0, 0]]))


def test_discount_to_end_by_hand() -> None:
    found = discount_to_end(torch.tensor([2.0, -1.0]), DURATION, ACTS, 0.5)
    assert_close(found, torch.tensor([[2 / 16, 0, 2 / 4, 2 / 2, 0, 0], [0, -1 / 16, 0, 0, 0, 0]]))
    flat = discount_to_end(torch.tensor([2.0, -1.0]), DURATION, ACTS, 1.0)
    assert_close(flat, torch.tensor([[2.0, 0, 2, 2, 0, 0], [0, -1, 0, 0, 0, 0]]))


def test_decision_rewards_by_hand() -> None:
    """The reward comes with the last token that the last decision covers; penalties where decisions are made."""
    penalty = torch.full((2, 6), math.nan)
    penalty[ACTS] = torch.tensor([0.5, 0.25, 0.125, 1.0])
    found = decision_rewards(torch.tensor([1.0, 2.0]), DURATION, ACTS, 0.5, penalty)
    assert_close(found, torch.tensor([[-0.5, 0, -0.25, 0.5 - 0.125, 0, 0], [0, 2 / 16 - 1, 0, 0, 0, 0]]))


def test_returns_by_hand() -> None:
    reward = torch.tensor([[1.0, 9, 2, 4, 9, 9], [9, 3, 9, 9, 9, 9]])  # the nines stand outside the decisions
    # 2 + 0.5 * 4 = 4, then 1 + 0.5^2 * 4 = 2.
    expected = torch.tensor([[2.0, 0, 4, 4, 0, 0], [0, 3, 0, 0, 0, 0]])
    assert_close(returns_to_go(reward, DURATION, ACTS, 0.5), expected)


def test_gae_by_hand() -> None:
    reward = torch.tensor([[1.0, 9, 2, 4, 9, 9], [9, 3, 9, 9, 9, 9]])
    value = torch.tensor([[0.5, math.nan, 1, 2, math.nan, math.inf], [math.nan, 1, 9, 9, 9, 9]])
    # delta = 1 + 0.25 * 1 - 0.5 = 0.75;  2 + 0.5 * 2 - 1 = 2;  4 - 2 = 2, and A = 2; 2 + 0.5 * 0.5 * 2 = 2.5;
    # 0.75 + 0.25 * 0.5 * 2.5 = 1.0625.
    expected = torch.tensor([[1.0625, 0, 2.5, 2, 0, 0], [0, 2, 0, 0, 0, 0]])
    assert_close(gae(reward, value, DURATION, ACTS, gamma=0.5, lam=0.5), expected)


@given(drawn=rows_of_decisions(), gamma=st.sampled_from([0.5, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.6, 0.95, 1.0]))
def test_gae_is_its_recursion(drawn, gamma, lam) -> None:
    """Against a loop over each row's decisions in float64."""
    acts, duration = drawn
    reward, value = random_like(acts, 1), random_like(acts, 2)
    expected = torch.zeros(acts.shape)
    for row in range(len(acts)):
        ahead_value = ahead = 0.0
        for t in reversed(acts[row].nonzero()[:, 0].tolist()):
            discount = gamma ** float(duration[row, t])
            delta = float(reward[row, t]) + discount * ahead_value - float(value[row, t])
            ahead_value, ahead = float(value[row, t]), delta + discount * lam * ahead
            expected[row, t] = ahead
    assert_close(gae(reward, value, duration, acts, gamma=gamma, lam=lam), expected, atol=1e-5, rtol=1e-5)


@given(drawn=rows_of_decisions(), gamma=st.sampled_from([0.5, 0.9, 1.0]))
def test_gae_without_bootstrapping_is_the_return_less_the_value(drawn, gamma) -> None:
    acts, duration = drawn
    reward, value = random_like(acts, 3), random_like(acts, 4)
    returns = returns_to_go(reward, duration, acts, gamma)
    expected = torch.where(acts, returns - value, 0.0)
    assert_close(gae(reward, value, duration, acts, gamma=gamma, lam=1.0), expected, atol=1e-5, rtol=1e-5)


@given(drawn=rows_of_decisions(), gamma=st.sampled_from([0.5, 0.9, 1.0]), seed=st.integers(0, 9))
def test_a_long_decision_sees_the_return_of_the_token_it_begins_with(drawn, gamma, seed) -> None:
    """Time passes token by token whoever decides: leaving out decisions changes no return of those that are left."""
    acts, duration = drawn
    rows = torch.arange(len(acts))
    ends = (torch.arange(1, acts.shape[1] + 1) * acts + duration - acts.float()).amax(1)  # length of each row
    starts = torch.where(acts.any(1), acts.float().argmax(1), ends)
    each = (torch.arange(acts.shape[1]) >= starts[:, None]) & (torch.arange(acts.shape[1]) < ends[:, None])
    reward = random_like(acts, seed)[rows, 0]
    by_token = returns_to_go(decision_rewards(reward, each.float(), each, gamma), each.float(), each, gamma)
    by_decision = returns_to_go(decision_rewards(reward, duration, acts, gamma), duration, acts, gamma)
    assert_close(by_decision, torch.where(acts, by_token, 0.0))
    # With nothing but the reward at the end, that is the row's reward, discounted to the end.
    assert_close(by_decision, discount_to_end(reward, duration, acts, gamma))


def test_batch_normalized_by_hand() -> None:
    advantage = torch.tensor([[1.0, math.nan, 3, 3, 9, 9], [9, 5, 9, 9, 9, 9]])
    # Mean 3, variance (4 + 0 + 0 + 4) / 4 = 2.
    root = math.sqrt(2)
    expected = torch.tensor([[-root, 0, 0, 0, 0, 0], [0, root, 0, 0, 0, 0]])
    assert_close(batch_normalized(advantage, ACTS, eps=0.0), expected)
    assert_close(batch_normalized(advantage, ACTS)[1, 1], torch.tensor(2 / (root + 1e-4)))


@given(drawn=rows_of_decisions(), shift=st.integers(-4, 4), scale=st.sampled_from([0.5, 2.0]))
def test_batch_normalized_ignores_shift_scale_and_order(drawn, shift, scale) -> None:
    acts, _ = drawn
    advantage = random_like(acts, 5)
    found = batch_normalized(advantage, acts, eps=1e-12)
    if int(acts.sum()) > 1:
        assert_close(found[acts].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        assert_close(found[acts].std(correction=0), torch.tensor(1.0))
        assert_close(batch_normalized(scale * advantage + shift, acts, eps=1e-12), found, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(found, torch.zeros_like(found))
    assert_close(batch_normalized(advantage.flip(0), acts.flip(0), eps=1e-12).flip(0), found, atol=1e-5, rtol=1e-5)


def test_batch_normalized_of_equal_advantages_is_exactly_zero() -> None:
    assert torch.equal(batch_normalized(torch.full((2, 6), 0.1), ACTS), torch.zeros(2, 6))


@given(drawn=rows_of_decisions(), columns=st.integers(1, 5), gamma=st.sampled_from([0.9, 1.0]))
def test_pad_columns_change_nothing(drawn, columns, gamma) -> None:
    """Whatever the padding holds."""
    acts, duration = drawn
    T = acts.shape[1]
    reward, value, row_reward = random_like(acts, 6), random_like(acts, 7), random_like(acts, 8)[:, 0]

    def every(acts: Tensor, duration: Tensor, reward: Tensor, value: Tensor) -> list[Tensor]:
        return [
            discount_to_end(row_reward, duration, acts, gamma),
            decision_rewards(row_reward, duration, acts, gamma, penalty_RT=reward),
            returns_to_go(reward, duration, acts, gamma),
            gae(reward, value, duration, acts, gamma=gamma, lam=0.9),
            batch_normalized(value, acts),
        ]

    def padded(tensor: Tensor, with_what: float) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, columns), value=with_what)

    before = every(acts, duration, reward, value)
    after = every(padded(acts, False), padded(duration, 0.0), padded(reward, math.nan), padded(value, math.inf))
    for one, other in zip(before, after, strict=True):
        assert_close(other[:, :T], one)
        assert torch.equal(other[:, T:], torch.zeros(len(acts), columns))


def test_overlong_punishment_by_hand() -> None:
    length = torch.tensor([0, 80, 81, 90, 100])
    expected = torch.tensor([0.0, 0.0, -0.05, -0.5, -1.0])
    assert_close(soft_overlong_punishment(length, max_new_tokens=100, buffer=20), expected)
    assert_close(soft_overlong_punishment(length, max_new_tokens=100, buffer=0.2), expected)
    assert torch.equal(soft_overlong_punishment(length, max_new_tokens=100, buffer=0), torch.zeros(5))
    assert_close(soft_overlong_punishment(length, max_new_tokens=100, buffer=100), -length / 100)


@pytest.mark.parametrize("buffer", [-1, -0.2, 101, math.nan])
def test_overlong_buffer_out_of_range(buffer) -> None:
    with pytest.raises(ConfigError, match="overlong buffer"):
        soft_overlong_punishment(torch.tensor([3]), max_new_tokens=100, buffer=buffer)
