"""KL estimates: by hand, unbiased where they claim to be, and with the gradients that the module's page gives them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ra3gym.agents.rlvr.algorithms.kl import KLEstimator, kl_estimate
from ra3gym.errors import DataError, UnknownNameError


@pytest.fixture
def policies() -> tuple[Tensor, Tensor]:
    """Logits of a policy and of a reference over five actions, float64."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=5)), torch.from_numpy(rng.normal(size=5))


def expected_gradient(policies: tuple[Tensor, Tensor], estimator: KLEstimator) -> Tensor:
    """The estimate's gradient with respect to the logits, the sampled action summed out exactly."""
    logits = policies[0].clone().requires_grad_()
    logp, ref = logits.log_softmax(0), policies[1].log_softmax(0)
    (logp.detach().exp() * kl_estimate(logp, ref, estimator)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_estimates_by_hand() -> None:
    logp, ref = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.0, -1.0, -5.0])
    assert_close(kl_estimate(logp, ref, "k1"), torch.tensor([0.0, -1, 2]))
    assert_close(kl_estimate(logp, ref, "k2"), torch.tensor([0.0, 0.5, 2]))
    assert_close(kl_estimate(logp, ref, "k3"), torch.tensor([0.0, math.e - 2, math.exp(-2) + 1]))


def test_k3_keeps_its_digits_near_the_reference() -> None:
    """x^2 / 2 to first order, where exp(x) - 1 - x in float32 would leave noise of 1e-7."""
    assert_close(kl_estimate(torch.tensor([-1e-4]), torch.tensor([0.0]), "k3"), torch.tensor([5e-9]), rtol=1e-2, atol=0)


@given(
    numbers=st.lists(st.tuples(st.floats(-20, 0, width=32), st.floats(-20, 0, width=32)), min_size=1, max_size=8),
    estimator=st.sampled_from(["k2", "k3"]),
)
def test_k2_and_k3_are_never_negative(numbers, estimator) -> None:
    logp, ref = torch.tensor(numbers, dtype=torch.float64).T
    assert bool((kl_estimate(logp, ref, estimator) >= 0).all())


def test_k1_and_k3_are_unbiased_and_k2_is_not(policies: tuple[Tensor, Tensor]) -> None:
    logp, ref = (logits.log_softmax(0) for logits in policies)
    true = (logp.exp() * (logp - ref)).sum()
    for estimator in ("k1", "k3"):
        assert_close((logp.exp() * kl_estimate(logp, ref, estimator)).sum(), true)
    assert abs(float((logp.exp() * kl_estimate(logp, ref, "k2")).sum() - true)) > 0.02


def test_gradients_as_a_loss(policies: tuple[Tensor, Tensor]) -> None:
    """k1: none. k2: that of KL(pi || ref). k3: that of KL(ref || pi). By hand with respect to the logits z:
    dKL(pi||ref)/dz = pi * (l - KL) with l = log pi - log ref, and dKL(ref||pi)/dz = pi - ref."""
    logp, ref = (logits.log_softmax(0) for logits in policies)
    p = logp.exp()
    log_ratio = logp - ref
    assert_close(expected_gradient(policies, "k1"), torch.zeros(5, dtype=torch.float64))
    assert_close(expected_gradient(policies, "k2"), p * (log_ratio - (p * log_ratio).sum()))
    assert_close(expected_gradient(policies, "k3"), p - ref.exp())


def test_gradients_as_a_reward(policies: tuple[Tensor, Tensor]) -> None:
    """k1: that of KL(pi || ref). k3, unbiased as it is: that of KL(pi || ref) - KL(ref || pi)."""

    def policy_gradient(estimator: KLEstimator) -> Tensor | None:
        logits = policies[0].clone().requires_grad_()
        logp, ref = logits.log_softmax(0), policies[1].log_softmax(0)
        reward = -kl_estimate(logp.detach(), ref, estimator)
        (-logp.detach().exp() * reward * logp).sum().backward()
        return logits.grad

    logp, ref = (logits.log_softmax(0) for logits in policies)
    p, log_ratio = logp.exp(), logp - ref
    reverse = p * (log_ratio - (p * log_ratio).sum())
    assert_close(policy_gradient("k1"), reverse)
    assert_close(policy_gradient("k3"), reverse - (p - ref.exp()))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_only_k1_pulls_near_the_reference_as_a_reward(policies: tuple[Tensor, Tensor], estimator: KLEstimator) -> None:
    """Ten times nearer, the pull of k2 and k3 is a hundred times weaker; that of k1 ten times."""

    def pull(distance: float, estimator: KLEstimator) -> float:
        logits = (policies[1] + distance * policies[0]).requires_grad_()
        logp, ref = logits.log_softmax(0), policies[1].log_softmax(0)
        (logp.detach().exp() * kl_estimate(logp.detach(), ref, estimator) * logp).sum().backward()
        assert logits.grad is not None
        return float(logits.grad.norm())

    assert pull(1e-3, "k1") == pytest.approx(0.1 * pull(1e-2, "k1"), rel=0.05)
    assert pull(1e-3, estimator) == pytest.approx(0.01 * pull(1e-2, estimator), rel=0.05)


def test_unknown_estimator_and_shapes() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown KL estimator 'k4'; known: k1, k2, k3"):
        kl_estimate(torch.zeros(2), torch.zeros(2), "k4")
    with pytest.raises(DataError, match=r"\(2, 3\) and the reference's \(2,\)"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(2), "k1")
