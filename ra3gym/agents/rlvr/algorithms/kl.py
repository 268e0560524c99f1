"""Per-token estimates of the KL divergence from the policy to a reference, and which gradient each of them has.

With `x ~ pi` and `l = log pi(x) - log ref(x)`, Schulman's note "Approximating KL Divergence" (2020) has

    k1 = l                      unbiased, may be negative, noisy
    k2 = l^2 / 2                biased (second order), never negative
    k3 = exp(-l) - 1 + l        unbiased, never negative, little noise near the reference

as estimates of `KL(pi || ref)`. A good estimate of the *value* may be a bad one of the *gradient*. As a term of the
loss, differentiated through `log pi` on tokens that pi itself sampled,

    E[grad k1] = E[grad log pi]                  = 0                       no regularization, only noise
    E[grad k2] = E[l * grad log pi]              = grad KL(pi || ref)      the wanted gradient
    E[grad k3] = E[(1 - ref/pi) * grad log pi]   = grad KL(ref || pi)      that of the *forward* KL

(Tang & Munos, arXiv 2506.09477). GRPO puts k3 into the loss nevertheless; near the reference both gradients agree to
first order in l. k1 is refused in the loss. A loss per token also ignores that a token changes the KL of later tokens.

As a penalty in the *reward* the estimate is a factor of `grad log pi` of its own token and, through the returns, of
earlier tokens:

    E[k1 * grad log pi]   = grad KL(pi || ref)                        the wanted gradient
    E[k2 * grad log pi]   is of second order in l                     hardly any effect near the reference
    E[k3 * grad log pi]   = grad KL(pi || ref) - grad KL(ref || pi)   the same, although its value is unbiased

So k1 belongs in the reward, as in REINFORCE++, RLOO and PPO, and k2 or k3 in the loss.

Off-policy these equations hold only approximately, as the tokens come from an older policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ra3gym.errors import DataError, UnknownNameError

KLEstimator = Literal["k1", "k2", "k3"]
"""Names of the estimators; the module's docstring has their gradients."""


def kl_k1(logp_RT: Tensor, ref_logp_RT: Tensor) -> Tensor:
    """Return `log pi - log ref` in nats: the estimate for the reward. As a loss its expected gradient is 0."""
    return logp_RT - ref_logp_RT


def kl_k2(logp_RT: Tensor, ref_logp_RT: Tensor) -> Tensor:
    """Return `(log pi - log ref)^2 / 2` in nats: as a loss it has the gradient of KL(pi || ref), on-policy."""
    return 0.5 * (logp_RT - ref_logp_RT).square()


def kl_k3(logp_RT: Tensor, ref_logp_RT: Tensor) -> Tensor:
    """Return `ref/pi - 1 - log(ref/pi)` in nats, GRPO's (arXiv 2402.03300, equation 4)."""
    log_ratio_RT = ref_logp_RT - logp_RT
    # expm1 keeps the digits that exp(x) - 1 loses where policy and reference are close.
    return torch.expm1(log_ratio_RT) - log_ratio_RT


_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_estimate(logp_RT: Tensor, ref_logp_RT: Tensor, estimator: KLEstimator) -> Tensor:
    """Return an elementwise KL estimate from policy to reference, in nats; differentiable in `logp_RT`.

    Args:
        logp_RT: log-probabilities of the sampled tokens under the policy; finite, also in the padding.
        ref_logp_RT: their log-probabilities under the reference, at the same temperature.
        estimator: "k1", "k2" or "k3".

    Raises:
        UnknownNameError: another estimator.
        DataError: shapes that differ.
    """
    if estimator not in _ESTIMATORS:
        raise UnknownNameError("KL estimator", estimator, _ESTIMATORS)
    if logp_RT.shape != ref_logp_RT.shape:
        raise DataError(
            f"log-probabilities of shape {tuple(logp_RT.shape)} and the reference's {tuple(ref_logp_RT.shape)}: give "
            "one of each per token"
        )
    return _ESTIMATORS[estimator](logp_RT, ref_logp_RT)
