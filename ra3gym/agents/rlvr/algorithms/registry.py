"""The RLVR algorithms by name.

`algorithm("grpo")` returns one and `algorithm("grpo", clip_high=0.28)` changes it. `register_algorithm` adds another;
`register_advantage` and `register_objective` add the parts that an algorithm names:

    algorithm             advantage of a decision            objective         aggregation
    reinforce             return to go                       policy_gradient   length
    reinforce++           return, normalized in the batch    ppo_clip          token
    reinforce++_baseline  the same, less the group's mean    ppo_clip          token
    rloo                  less the others' mean reward       policy_gradient   length
    grpo                  standardized in the group          ppo_clip          sequence
    grpo_token            standardized in the group          ppo_clip          token
    dr_grpo               less the group's mean              ppo_clip          length
    dapo                  standardized in the group          ppo_clip, higher  token
    gspo                  standardized in the group          gspo              sequence
    cispo                 standardized in the group          cispo             token
    ppo                   GAE, normalized in the batch       ppo_clip          token

Two defaults differ from the papers. `kl_coefficient` is 0 for all: rewards that are verified need no anchor (DAPO,
section 2.3; Dr. GRPO, section 3), and a reference model costs memory and a forward pass. `kl_estimator` and `kl_place`
are those of each paper, so that the coefficient alone switches its KL on. A batch gets one update (PPO: four), because
the right number of minibatches depends on the batch. On-policy every ratio is 1 and clipping has no effect; it does
with `minibatches` or `updates_per_batch` above 1 (the comments below give the papers' numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from ra3gym.agents.rlvr.algorithms import advantages, objectives
from ra3gym.agents.rlvr.algorithms.composition import (
    AdvantageFunction,
    Aggregation,
    Algorithm,
    KLPlace,
    ObjectiveFunction,
    RolloutBatch,
    check_known,
    decision_rewards,
    gae_of,
    register_advantage,
    register_objective,
    row_rewards,
    token_weights,
)
from ra3gym.plugins import Registry

__all__ = [
    "Aggregation",
    "Algorithm",
    "KLPlace",
    "RolloutBatch",
    "algorithm",
    "algorithm_names",
    "decision_rewards",
    "gae_of",
    "register_advantage",
    "register_algorithm",
    "register_objective",
    "row_rewards",
    "token_weights",
]

_ALGORITHMS: Registry[Algorithm] = Registry("RLVR algorithm", "register_algorithm")


def register_algorithm(algorithm: Algorithm) -> None:
    """Make `algorithm` available under its name; an algorithm of that name is replaced."""
    _ALGORITHMS.register(algorithm.name, algorithm)


def algorithm_names() -> tuple[str, ...]:
    """Return the names of all algorithms, in the order in which they were registered."""
    return _ALGORITHMS.names()


def algorithm(name_or_algorithm: str | Algorithm, **changes: Any) -> Algorithm:
    """Return the algorithm of that name, or the given one, with some fields changed.

    Raises:
        UnknownNameError: no such algorithm or no such field; the message lists them.
        ConfigError: a value outside its range.
    """
    start = _ALGORITHMS[name_or_algorithm] if isinstance(name_or_algorithm, str) else name_or_algorithm
    for change in changes:
        check_known("field of an RLVR algorithm", change, [field.name for field in fields(Algorithm)])
    return replace(start, **changes)


def _of_rows(row_advantage: Callable[[Tensor, int], Tensor]) -> AdvantageFunction:
    """Return the advantage of decisions that discounts a row's advantage to its end."""

    def advantage(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
        advantage_R = row_advantage(row_rewards(batch, algorithm), batch.group_size)
        return advantages.discount_to_end(advantage_R, batch.duration_RT, batch.acts_RT, algorithm.gamma)

    return advantage


def _return(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    reward_RT = decision_rewards(batch, algorithm)
    return advantages.returns_to_go(reward_RT, batch.duration_RT, batch.acts_RT, algorithm.gamma)


def _batch_normalized(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    return advantages.batch_normalized(_return(batch, algorithm), batch.acts_RT)


def _group_batch_normalized(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    # The baseline is the mean of the judge's rewards; a KL in the reward stays with the decisions.
    centered_R = advantages.group_centered(batch.reward_R, batch.group_size)
    return _batch_normalized(replace(batch, reward_R=centered_R), algorithm)


def _gae_normalized(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    return advantages.batch_normalized(gae_of(batch, algorithm), batch.acts_RT)


register_advantage("group_standardized", _of_rows(advantages.group_standardized), compares_samples=True)
register_advantage("group_centered", _of_rows(advantages.group_centered), compares_samples=True)
register_advantage("leave_one_out", _of_rows(advantages.leave_one_out), compares_samples=True)
register_advantage("return", _return)
register_advantage("batch_normalized", _batch_normalized)
register_advantage("group_batch_normalized", _group_batch_normalized, compares_samples=True)
register_advantage("gae", gae_of, needs_value=True)
register_advantage("gae_normalized", _gae_normalized, needs_value=True)


def _with_numbers(objective: Callable[..., tuple[Tensor, Tensor]], *names: str) -> ObjectiveFunction:
    """Return the objective with these of its keywords read from the algorithm's fields of the same names."""

    def with_algorithm(
        logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor, algorithm: Algorithm
    ) -> tuple[Tensor, Tensor]:
        numbers = {name: getattr(algorithm, name) for name in names}
        return objective(logp_RT, old_logp_RT, advantage_RT, acts_RT, **numbers)

    return with_algorithm


register_objective("policy_gradient", _with_numbers(objectives.policy_gradient))
register_objective("ppo_clip", _with_numbers(objectives.ppo_clip, "clip_low", "clip_high", "dual_clip"))
register_objective("gspo", _with_numbers(objectives.gspo, "clip_low", "clip_high"))
register_objective("cispo", _with_numbers(objectives.cispo, "clip_low", "clip_high"))


# Williams 1992, without a baseline, which the others improve on. The sum over a row's decisions is the gradient of the
# expected reward; "length" divides it by a constant.
register_algorithm(
    Algorithm(
        name="reinforce",
        advantage="return",
        objective="policy_gradient",
        aggregation="length",
        kl_estimator="k1",
        kl_place="reward",
    )
)
# arXiv 2501.03262, the first of its two variants (any group size, 1 included): k1 per token in the reward.
register_algorithm(
    Algorithm(
        name="reinforce++",
        advantage="batch_normalized",
        objective="ppo_clip",
        kl_estimator="k1",
        kl_place="reward",
    )
)
# arXiv 2501.03262, "REINFORCE++ w/ Baseline", the variant for groups: k2 in the loss.
register_algorithm(
    Algorithm(
        name="reinforce++_baseline",
        advantage="group_batch_normalized",
        objective="ppo_clip",
        kl_estimator="k2",
    )
)
# arXiv 2402.14740: plain policy gradient on whole completions, no clip. KL in the reward, k1.
register_algorithm(
    Algorithm(
        name="rloo",
        advantage="leave_one_out",
        objective="policy_gradient",
        aggregation="length",
        kl_estimator="k1",
        kl_place="reward",
    )
)
# arXiv 2402.03300, equations 3 and 4: mean over rows of their means. One update a batch, G = 64, k3 in the loss with a
# coefficient of 0.04.
register_algorithm(Algorithm(name="grpo", advantage="group_standardized", objective="ppo_clip", aggregation="sequence"))
# GRPO's advantage with the mean over all tokens of the batch, which does not favor short correct and long wrong rows.
# The studies published with this toolkit ran it, on-policy.
register_algorithm(Algorithm(name="grpo_token", advantage="group_standardized", objective="ppo_clip"))
# arXiv 2503.20783: neither the group's standard deviation nor the row's length, both of which bias the gradient.
register_algorithm(Algorithm(name="dr_grpo", advantage="group_centered", objective="ppo_clip", aggregation="length"))
# arXiv 2503.14476, section 4.1: clip range 0.2 and 0.28, a buffer of 4096 of 20480 tokens; 16 minibatches. No KL.
register_algorithm(
    Algorithm(
        name="dapo",
        advantage="group_standardized",
        objective="ppo_clip",
        clip_low=0.2,
        clip_high=0.28,
        dynamic_sampling=True,
        overlong_buffer=0.2,
    )
)
# arXiv 2507.18071, section 5.1: clip range 3e-4 and 4e-4; 4 minibatches.
register_algorithm(
    Algorithm(
        name="gspo",
        advantage="group_standardized",
        objective="gspo",
        aggregation="sequence",
        clip_low=3e-4,
        clip_high=4e-4,
    )
)
# arXiv 2506.13585, equations 4 and 5: no lower bound, no KL; 16 minibatches. The paper does not print its upper bound;
# a weight of at most 5 is what TRL recommends after ScaleRL (arXiv 2510.13786).
register_algorithm(
    Algorithm(name="cispo", advantage="group_standardized", objective="cispo", clip_low=1.0, clip_high=4.0)
)
# arXiv 1707.06347 with a value head, as for language models: four passes over a batch and k1 in the reward (Ouyang et
# al., arXiv 2203.02155, appendix C), gamma = lambda = 1 for rewards at the end (Open-Reasoner-Zero, arXiv 2503.24290).
register_algorithm(
    Algorithm(
        name="ppo",
        advantage="gae_normalized",
        objective="ppo_clip",
        kl_estimator="k1",
        kl_place="reward",
        updates_per_batch=4,
    )
)
