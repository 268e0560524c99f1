"""The torch form of the evidence: its gradient is the posterior, on either path, whatever stands behind the ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ra3gym.abstractions.inference.posterior import LatentChain, posterior
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.inference.torch_evidence import _on_cpu, _on_device, sticky_log_evidence
from ra3gym.errors import DataError

LENGTHS = [6, 1, 3, 5]

Infer = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def emissions(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.log_softmax(2.0 * torch.randn(4, 6, 3, generator=generator, dtype=dtype), 2)


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6, 6]])
def test_gradients_hold_against_finite_differences(lengths: list[int]) -> None:
    log_emission_BTK = emissions().requires_grad_()
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    length_B = torch.tensor(lengths)
    assert torch.autograd.gradcheck(
        lambda values, stickiness: sticky_log_evidence(values, length_B, stickiness), (log_emission_BTK, alpha)
    )


@pytest.mark.parametrize("behind", [0.0, torch.nan, -torch.inf, torch.inf])
@pytest.mark.parametrize("infer", [_on_cpu, _on_device])
def test_what_stands_behind_the_ends_is_not_read(infer: Infer, behind: float) -> None:
    length_B = torch.tensor(LENGTHS)
    log_emission_BTK = emissions()
    log_emission_BTK[0, 1, 2] = -torch.inf
    inside_BT = torch.arange(6) < length_B[:, None]
    traces = [values[:length].numpy() for values, length in zip(log_emission_BTK, LENGTHS, strict=True)]
    expected = posterior(LatentChain.under(StickyPrior(0.7, 3), traces))
    evidence_B, marginal_BTK, draws_B = infer(
        log_emission_BTK.masked_fill(~inside_BT[:, :, None], behind), length_B, 0.7
    )
    np.testing.assert_allclose(evidence_B, expected.log_evidence_M, rtol=1e-13)
    np.testing.assert_allclose(marginal_BTK[inside_BT], expected.marginal_NK, atol=1e-13)
    assert (marginal_BTK[~inside_BT] == 0.0).all()
    switches = np.split(expected.switch_N, np.cumsum(LENGTHS)[:-1])
    np.testing.assert_allclose(draws_B, [values[1:].sum() for values in switches], atol=1e-13)


def test_single_precision_goes_in_and_comes_out() -> None:
    log_emission_BTK = emissions(torch.float32).requires_grad_()
    evidence_B = sticky_log_evidence(log_emission_BTK, torch.tensor(LENGTHS), 0.7)
    (marginal_BTK,) = torch.autograd.grad(evidence_B.sum(), log_emission_BTK)
    assert evidence_B.dtype == marginal_BTK.dtype == torch.float32
    torch.testing.assert_close(marginal_BTK.sum(2)[0], torch.ones(6))


@pytest.mark.parametrize("infer", [_on_cpu, _on_device])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_traces_without_a_posterior_are_refused(infer: Infer, value: float) -> None:
    log_emission_BTK = emissions()
    log_emission_BTK[2, 1] = value
    with pytest.raises(DataError, match=r"probability 0|impossible|NaN"):
        infer(log_emission_BTK, torch.tensor(LENGTHS), 0.7)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, float("nan")])
def test_alpha_must_be_a_probability(alpha: float) -> None:
    with pytest.raises(DataError, match="alpha="):
        sticky_log_evidence(emissions(), torch.tensor(LENGTHS), alpha)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_same() -> None:
    found = [_on_device(emissions().to(device), torch.tensor(LENGTHS).to(device), 0.7) for device in ("cpu", "cuda")]
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-12, atol=1e-12)
