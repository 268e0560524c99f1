"""Losses by hand, their gradients against formulas written out in numpy, and what must not change them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ra3gym.agents.rlvr.algorithms.objectives import (
    cispo,
    gspo,
    policy_gradient,
    ppo_clip,
    truncated_importance_weights,
    value_loss,
)
from ra3gym.errors import DataError

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# One decision per case, all with pi_old = 0.5, and a token that is none. Ratios 1, 1.1, 1.5, 1.5, 0.5, 0.5, 6.
RATIOS = torch.tensor([[1.0, 1.1, 1.5, 1.5, 0.5, 0.5, 6.0, 7.0]])
ADVANTAGE = torch.tensor([[2.0, 2.0, 2.0, -2.0, 2.0, -2.0, -2.0, 9.0]])
ACTS = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]).bool()
OLD_LOGP = torch.full((1, 8), math.log(0.5))
LOGP = OLD_LOGP + RATIOS.log()


def batches() -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Log-probabilities, advantages and decisions of rows of one length, float64; some rows have no decisions."""

    def make(seed: int, rows: int, columns: int, spread: float) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        old = -rng.exponential(size=(rows, columns))
        return {
            "logp": old + spread * rng.normal(size=(rows, columns)),
            "old": old,
            "advantage": rng.normal(size=(rows, columns)) * rng.integers(0, 2, size=(rows, columns)),
            "acts": rng.random((rows, columns)) < rng.random((rows, 1)),
        }

    return st.builds(
        make, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 7), st.sampled_from([0.0, 0.05, 0.3, 2.0])
    )


def tensors(batch: dict[str, np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(batch[name]) for name in ("logp", "old", "advantage", "acts")]


def gradient(objective: Objective, batch: dict[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Of the weighted sum of the losses, by autograd."""
    logp, old, advantage, acts = tensors(batch)
    loss, _ = objective(logp.requires_grad_(), old, advantage, acts)
    (torch.from_numpy(weights) * loss).sum().backward()
    assert logp.grad is not None
    return logp.grad.numpy()


def clip_gate(ratio: np.ndarray, advantage: np.ndarray, low: float, high: float) -> np.ndarray:
    """1 where PPO's objective moves with the ratio."""
    stuck = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    return np.where(stuck, 0.0, 1.0)


def numpy_policy_gradient(batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.where(batch["acts"], -batch["advantage"], 0.0)


def numpy_ppo(batch: dict[str, np.ndarray], low: float, high: float, dual: float = math.inf) -> np.ndarray:
    ratio, advantage = np.exp(batch["logp"] - batch["old"]), batch["advantage"]
    gate = clip_gate(ratio, advantage, low, high) * np.where((advantage < 0) & (ratio > dual), 0.0, 1.0)
    return np.where(batch["acts"], -advantage * ratio * gate, 0.0)


def numpy_gspo(batch: dict[str, np.ndarray], low: float, high: float) -> np.ndarray:
    acts, log_ratio = batch["acts"], batch["logp"] - batch["old"]
    found = np.zeros_like(log_ratio)
    for row in range(len(acts)):
        if acts[row].any():
            s = np.exp(log_ratio[row][acts[row]].mean())
            found[row] = (
                -batch["advantage"][row] * s * clip_gate(np.full(acts.shape[1], s), batch["advantage"][row], low, high)
            )
    return np.where(acts, found, 0.0)


def numpy_cispo(batch: dict[str, np.ndarray], low: float, high: float) -> np.ndarray:
    weight = np.clip(np.exp(batch["logp"] - batch["old"]), 1 - low, 1 + high)
    return np.where(batch["acts"], -batch["advantage"] * weight, 0.0)


PPO = partial(ppo_clip, clip_low=0.2, clip_high=0.28)
DUAL = partial(ppo_clip, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
GSPO = partial(gspo, clip_low=0.05, clip_high=0.1)
CISPO = partial(cispo, clip_low=1.0, clip_high=0.5)


CASES = {
    "policy_gradient": (policy_gradient, numpy_policy_gradient),
    "ppo": (PPO, partial(numpy_ppo, low=0.2, high=0.28)),
    "dual clip": (DUAL, partial(numpy_ppo, low=0.2, high=0.2, dual=3.0)),
    "gspo": (GSPO, partial(numpy_gspo, low=0.05, high=0.1)),
    "cispo": (CISPO, partial(numpy_cispo, low=1.0, high=0.5)),
    "cispo, both bounds": (partial(cispo, clip_low=0.3, clip_high=0.5), partial(numpy_cispo, low=0.3, high=0.5)),
}


def test_ppo_by_hand() -> None:
    loss, clipped = ppo_clip(LOGP, OLD_LOGP, ADVANTAGE, ACTS, clip_low=0.2, clip_high=0.28)
    assert_close(loss, torch.tensor([[-2.0, -2.2, -2.56, 3.0, -1.0, 1.6, 12.0, 0.0]]))
    assert clipped.tolist() == [[False, False, True, False, False, True, False, False]]


def test_dual_clip_by_hand() -> None:
    """Only the ratio of 6 under a negative advantage is bounded: 3 * 2 in place of 6 * 2."""
    loss, clipped = ppo_clip(LOGP, OLD_LOGP, ADVANTAGE, ACTS, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert_close(loss, torch.tensor([[-2.0, -2.2, -2.56, 3.0, -1.0, 1.6, 6.0, 0.0]]))
    assert clipped.tolist() == [[False, False, True, False, False, True, True, False]]


def test_cispo_by_hand() -> None:
    loss, clipped = cispo(LOGP, OLD_LOGP, ADVANTAGE, ACTS, clip_low=1.0, clip_high=4.0)
    weight = torch.tensor([1.0, 1.1, 1.5, 1.5, 0.5, 0.5, 5.0])
    assert_close(loss[0, :7], -weight * ADVANTAGE[0, :7] * LOGP[0, :7])
    assert loss[0, 7] == 0
    assert clipped.tolist() == [[False] * 6 + [True, False]]


def test_policy_gradient_by_hand() -> None:
    loss, clipped = policy_gradient(LOGP, OLD_LOGP, ADVANTAGE, ACTS)
    assert_close(loss[:, :7], -ADVANTAGE[:, :7] * LOGP[:, :7])
    assert loss[0, 7] == 0
    assert not clipped.any()


def test_gspo_by_hand() -> None:
    """Ratios 2 and 1/2 have the geometric mean 1; ratios 2 and 2, with a token between that is no decision, 2."""
    old = torch.zeros(2, 3)
    logp = torch.tensor([[math.log(2), math.log(0.5), 5.0], [math.log(2), 5.0, math.log(2)]])
    acts = torch.tensor([[1, 1, 0], [1, 0, 1]]).bool()
    advantage = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
    loss, clipped = gspo(logp, old, advantage, acts, clip_low=0.1, clip_high=0.2)
    assert_close(loss, torch.tensor([[-1.0, -1.0, 0.0], [-1.2, 0.0, 2.0]]))
    assert clipped.tolist() == [[False] * 3, [True, False, False]]


@pytest.mark.parametrize("name", CASES)
@given(batch=batches())
def test_gradients_are_the_formulas(name, batch) -> None:
    objective, formula = CASES[name]
    weights = np.random.default_rng(0).random(batch["logp"].shape)
    np.testing.assert_allclose(gradient(objective, batch, weights), weights * formula(batch), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name != "policy_gradient" and "cispo" not in name])
@given(batch=batches())
def test_where_clipped_there_is_no_gradient_and_elsewhere_there_is(name, batch) -> None:
    objective, _ = CASES[name]
    _, clipped = objective(*tensors(batch))
    moves = gradient(objective, batch, np.ones_like(batch["logp"])) != 0
    np.testing.assert_array_equal(moves, batch["acts"] & (batch["advantage"] != 0) & ~clipped.numpy())


@given(batch=batches())
def test_on_policy_all_objectives_have_the_policy_gradient(batch) -> None:
    batch = batch | {"old": batch["logp"]}
    weights = np.random.default_rng(1).random(batch["logp"].shape)
    for objective, _ in CASES.values():
        np.testing.assert_allclose(
            gradient(objective, batch, weights), weights * numpy_policy_gradient(batch), rtol=1e-9, atol=1e-12
        )


@given(batch=batches())
def test_gspo_of_one_advantage_per_row_is_its_sequence_form(batch) -> None:
    """Value and gradient of the mean over a row: -min(s A, clip(s) A) with autograd through s itself."""
    batch = batch | {"advantage": np.broadcast_to(batch["advantage"][:, :1], batch["logp"].shape).copy()}
    logp, old, advantage, acts = tensors(batch)
    count = acts.sum(1).clamp(min=1)
    loss, _ = GSPO(logp.requires_grad_(), old, advantage, acts)
    token_form = loss.sum(1) / count
    (found,) = torch.autograd.grad(token_form.sum(), logp)
    s = (((logp - old) * acts).sum(1) / count).exp()
    A = advantage[:, 0] * acts.any(1)
    sequence_form = -torch.minimum(s * A, s.clamp(0.95, 1.1) * A)
    (expected,) = torch.autograd.grad(sequence_form.sum(), logp)
    assert_close(token_form, sequence_form)
    assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
@given(batch=batches(), columns=st.integers(1, 4), filler=st.sampled_from([0.0, 7.0, math.inf, -math.inf, math.nan]))
def test_pad_columns_change_nothing(name, batch, columns, filler) -> None:
    """Neither losses nor gradients, whatever stands in them."""
    objective, _ = CASES[name]
    T = batch["logp"].shape[1]

    def wider(array: np.ndarray) -> np.ndarray:
        last = False if array.dtype == bool else filler
        return np.pad(array, ((0, 0), (0, columns)), constant_values=last)

    padded = {key: wider(array) for key, array in batch.items()}
    for one, other in zip(objective(*tensors(batch)), objective(*tensors(padded)), strict=True):
        assert_close(other[:, :T], one)
        assert not other[:, T:].any()
    ones = np.ones_like(padded["logp"])
    found = gradient(objective, padded, ones)
    np.testing.assert_allclose(found[:, :T], gradient(objective, batch, ones[:, :T]))
    np.testing.assert_array_equal(found[:, T:], 0.0)


@pytest.mark.parametrize("name", CASES)
@given(batch=batches(), seed=st.integers(0, 99))
def test_rows_do_not_see_each_other(name, batch, seed) -> None:
    """So that a batch may be cut into micro-batches."""
    objective, _ = CASES[name]
    order = np.random.default_rng(seed).permutation(len(batch["logp"]))
    whole = objective(*tensors(batch))
    for place, row in enumerate(order):
        alone = objective(*tensors({key: array[row : row + 1] for key, array in batch.items()}))
        shuffled = objective(*tensors({key: array[order] for key, array in batch.items()}))
        for one, other, third in zip(whole, alone, shuffled, strict=True):
            assert_close(other[0], one[row])
            assert_close(third[place], one[row])


def test_the_end_of_text_counts_when_it_is_also_the_padding() -> None:
    """Lengths make the mask, not token ids: the first end of text is a decision, what follows it is not."""
    eos = pad = 0
    ids = torch.tensor([[5, 6, eos, pad, pad], [5, eos, pad, pad, pad]])
    length = torch.tensor([3, 2])
    acts = torch.arange(5) < length[:, None]
    logits = torch.zeros(2, 5, 8, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1).gather(2, ids[:, :, None])[:, :, 0]
    loss, _ = ppo_clip(logp, logp.detach(), torch.ones(2, 5).double(), acts, clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert logits.grad is not None
    pulled = logits.grad.abs().sum(-1) > 0
    assert pulled.tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    # Descent makes the end of text likelier at the place where it was sampled with a positive advantage.
    assert float(logits.grad[0, 2, eos]) == pytest.approx(-(1 - 1 / 8))


def test_truncated_importance_weights_by_hand() -> None:
    old, sampler = torch.tensor([[-1.0, -1.0, -1.0]]).requires_grad_(), torch.tensor([[-1.0, -3.0, -0.5]])
    weights = truncated_importance_weights(old, sampler, 2.0)
    assert_close(weights, torch.tensor([[1.0, 2.0, math.exp(-0.5)]]))
    assert not weights.requires_grad


@given(numbers=st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1), cap=st.floats(0.5, 8))
def test_importance_weights_stay_in_their_bounds(numbers, cap) -> None:
    old, sampler = torch.tensor(numbers, dtype=torch.float64).T[:, None]
    weights = truncated_importance_weights(old, sampler, cap)
    assert bool(((weights > 0) & (weights <= cap)).all())
    assert_close(weights, torch.exp(old - sampler).minimum(torch.tensor(cap, dtype=torch.float64)))


def test_value_loss_by_hand() -> None:
    # Moved towards the target beyond the clip; moved away from it; not moved; moved within the clip.
    value = torch.tensor([[0.8, -0.5, 0.0, 0.1]], dtype=torch.float64).requires_grad_()
    old, target = torch.zeros(1, 4).double(), torch.ones(1, 4).double()
    loss = value_loss(value, old, target, 0.2)
    assert_close(loss, 0.5 * torch.tensor([[0.64, 2.25, 1.0, 0.81]]).double())
    loss.sum().backward()
    # V - R, and 0 where the held estimate 0.2 is the worse one.
    assert_close(value.grad, torch.tensor([[0.0, -1.5, -1.0, -0.9]]).double())
    assert_close(value_loss(value, old, target, None), 0.5 * (value - target).square())


@given(batch=batches(), clip=st.sampled_from([0.05, 0.5]))
def test_value_loss_has_the_gradient_of_the_formula(batch, clip) -> None:
    value, old, target, _ = tensors(batch)
    value_loss(value.requires_grad_(), old, target, clip).sum().backward()
    new, before, goal = batch["logp"], batch["old"], batch["advantage"]
    held = before + np.clip(new - before, -clip, clip)
    stuck = (np.abs(new - before) > clip) & ((held - goal) ** 2 > (new - goal) ** 2)
    np.testing.assert_allclose(value.grad.numpy(), np.where(stuck, 0.0, new - goal), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_differ_are_refused(name) -> None:
    objective, _ = CASES[name]
    with pytest.raises(DataError, match=r"give \(rows, tokens\) throughout"):
        objective(LOGP, OLD_LOGP, ADVANTAGE[0], ACTS)
    with pytest.raises(DataError, match="bool mask"):
        objective(LOGP, OLD_LOGP, ADVANTAGE, ACTS.float())
