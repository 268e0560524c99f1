"""An RLVR algorithm as data: an advantage and an objective by name, their numbers, and the batch they work on.

An `Algorithm` holds only names and numbers, so that `dataclasses.asdict` of it can be stored in a run's manifest and
`Algorithm(**stored)` restores it. The arithmetic is in the modules `advantages`, `objectives` and `kl`; `registry`
registers the algorithms and their parts.

Shape letters: see CONTRIBUTING.md (P prompts, G members of a group, R = P x G rows, T time). The rows of prompt i are
i*G .. i*G + G - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ra3gym.agents.rlvr.algorithms import advantages
from ra3gym.agents.rlvr.algorithms.kl import KLEstimator
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.plugins import Registry

Aggregation = Literal["token", "sequence", "length"]
KLPlace = Literal["loss", "reward"]


@dataclass(frozen=True)
class RolloutBatch:
    """The data that an advantage may read: the R rows of a *whole* batch, those of all ranks together.

    Attributes:
        reward_R: float32, the judge's reward after shaping.
        group_size: G; the rows of a group are contiguous.
        acts_RT: bool: the decisions, a subset of the completion's tokens; False in the padding.
        duration_RT: float32: number of tokens from a decision to the next one; 0 elsewhere.
        kl_RT: KL estimate to the reference per token, in nats, for a KL in the reward; read at decisions only.
        value_RT: the value head's estimate before each token, for algorithms with `needs_value`; read at decisions
            only.

    Raises:
        DataError: shapes that do not fit each other.
    """

    reward_R: Tensor
    group_size: int
    acts_RT: Tensor
    duration_RT: Tensor
    kl_RT: Tensor | None = None
    value_RT: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.acts_RT.shape
        if self.acts_RT.dtype != torch.bool or len(shape) != 2:
            raise DataError(f"acts of shape {tuple(shape)} and {self.acts_RT.dtype}: give a bool mask, (rows, tokens)")
        if self.reward_R.shape != shape[:1] or self.group_size < 1 or len(self.reward_R) % self.group_size:
            raise DataError(
                f"rewards of shape {tuple(self.reward_R.shape)} for {shape[0]} rows in groups of {self.group_size}: "
                "give one reward per row and whole groups"
            )
        for name, tensor in [("durations", self.duration_RT), ("KL", self.kl_RT), ("values", self.value_RT)]:
            if tensor is not None and tensor.shape != shape:
                raise DataError(f"{name} of shape {tuple(tensor.shape)} beside acts of shape {tuple(shape)}")
        if bool(((self.duration_RT < 1) == self.acts_RT).any()) or bool(self.duration_RT[~self.acts_RT].any()):
            raise DataError("durations do not fit the acts: give at least 1 at every decision and 0 elsewhere")


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An RLVR algorithm. Immutable; `algorithm(name, field=value)` returns a changed copy.

    Attributes:
        name: its name in runs and tables.
        advantage: a registered advantage: "group_standardized", "group_centered", "leave_one_out", "return",
            "batch_normalized", "group_batch_normalized", "gae", "gae_normalized", or your own.
        objective: a registered objective: "policy_gradient", "ppo_clip", "gspo", "cispo", or your own.
        aggregation: how token losses become one number; see `token_weights`. "token": every decision of the batch
            counts the same; "sequence": every row counts the same, so decisions of long rows count less; "length": like
            "token", but divided by a constant, so that a batch of short rows has a smaller gradient.
        clip_low: how far below 1 a ratio may fall; 0.2, for GSPO about 3e-4, 1 for no bound. At most 1.
        clip_high: how far above 1 a ratio may rise; 0.2 to 0.28, for GSPO about 4e-4, for CISPO 3 to 7. A higher value
            keeps more entropy and allows larger updates.
        dual_clip: bound on the ratio where the advantage is negative, about 3; None: no bound. "ppo_clip" reads it.
        kl_coefficient: weight of the KL to the reference; 0 (no reference model is needed) to 0.05. A higher value
            keeps the policy closer to the reference.
        kl_estimator: "k1", "k2" or "k3"; `ra3gym.agents.rlvr.algorithms.kl` explains which one suits which place.
        kl_place: "loss" adds the KL to the token's loss; "reward" subtracts it from the decision's reward.
        entropy_coefficient: weight of the mean entropy of the decisions, in nats, as a bonus; 0 to 0.01. A higher value
            explores more.
        off_policy_cap: bound on the importance weight between the trainer's policy and the sampler's, about 2. It acts
            where the sampler's arithmetic is not the trainer's (a vLLM server, sampling in bfloat16). None: no such
            weight.
        dynamic_sampling: replace groups whose rewards are all equal, and so have no gradient, by groups of other tasks;
            this costs more sampling.
        overlong_buffer: tokens before the length limit over which the reward falls linearly to -1 (int), or a share of
            the limit below 1 (float, 0.2 in the DAPO paper); 0: off.
        gamma: discount per token that a decision covers; 0.99 to 1. Below 1, later rewards count less.
        lam: GAE's lambda, per decision; 0.95 to 1. A lower value trusts the value head more.
        value_coefficient: weight of the value head's loss; 0.1 to 1.
        value_clip: how far a value may move in a batch, in units of the return; 0.2, None: no bound.
        updates_per_batch: passes over a sampled batch; 1 is on-policy, 2 to 4 reuse samples.
        minibatches: optimizer steps per pass; more steps learn more from a batch and are less on-policy.

    Raises:
        UnknownNameError: an advantage, objective, aggregation, estimator or place that does not exist.
        ConfigError: a number outside its range, or fields that contradict each other.
    """

    name: str
    advantage: str
    objective: str
    aggregation: Aggregation = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: KLEstimator = "k3"
    kl_place: KLPlace = "loss"
    entropy_coefficient: float = 0.0
    off_policy_cap: float | None = 2.0
    dynamic_sampling: bool = False
    overlong_buffer: int | float = 0
    gamma: float = 1.0
    lam: float = 1.0
    value_coefficient: float = 0.1
    value_clip: float | None = 0.2
    updates_per_batch: int = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        _ = _ADVANTAGES[self.advantage], _OBJECTIVES[self.objective]  # an unknown name raises here
        check_known("aggregation", self.aggregation, get_args(Aggregation))
        check_known("KL estimator", self.kl_estimator, get_args(KLEstimator))
        check_known("place for the KL", self.kl_place, get_args(KLPlace))
        for field, low, high in _RANGES:
            number = getattr(self, field)
            if number is None and field in _MAY_BE_NONE:
                continue
            fits = isinstance(number, int | float) and math.isfinite(number) and low <= number <= high
            if not fits or isinstance(number, bool):
                bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ConfigError(f"{field}={number!r} of algorithm {self.name!r}: give a number {bounds}")
        for field in ("updates_per_batch", "minibatches"):
            if not isinstance(number := getattr(self, field), int):
                raise ConfigError(f"{field}={number} of algorithm {self.name!r}: give a whole number")
        if self.gamma == 0:
            raise ConfigError(f"gamma=0 of algorithm {self.name!r}: a reward at the end needs a discount above 0")
        for field in ("off_policy_cap", "value_clip"):
            if getattr(self, field) == 0:
                raise ConfigError(
                    f"{field}=0 of algorithm {self.name!r} leaves nothing to learn from; None switches it off"
                )
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ConfigError(
                f"dual_clip={self.dual_clip} of algorithm {self.name!r} lies inside the clip range: give more than "
                f"1 + clip_high = {1 + self.clip_high:g}, or None"
            )
        if self.overlong_buffer >= 1 and self.overlong_buffer != int(self.overlong_buffer):
            raise ConfigError(
                f"overlong_buffer={self.overlong_buffer} of algorithm {self.name!r}: give whole tokens, or a share of "
                "the length limit below 1"
            )
        if self.kl_coefficient > 0 and self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                f"algorithm {self.name!r} has the KL estimate k1 in the loss, where its expected gradient is 0: take "
                "kl_estimator='k2' or 'k3', or kl_place='reward'"
            )
        if self.objective == "policy_gradient" and self.updates_per_batch * self.minibatches > 1:
            raise ConfigError(
                f"algorithm {self.name!r} makes {self.updates_per_batch * self.minibatches} updates of a batch, but "
                "objective 'policy_gradient' has no importance ratio: take 'ppo_clip', or one update"
            )

    @property
    def needs_value(self) -> bool:
        """Whether the advantage reads the estimates of a value head."""
        return _ADVANTAGES[self.advantage].needs_value

    @property
    def compares_samples(self) -> bool:
        """Whether the advantage is relative to the other samples of the task, so that a group needs two of them."""
        return _ADVANTAGES[self.advantage].compares_samples

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model has to score the tokens."""
        return self.kl_coefficient > 0

    def advantages(self, batch: RolloutBatch) -> Tensor:
        """Return the advantages of the decisions, float32, shape (R, T), 0 outside `batch.acts_RT`.

        Groups have to be complete, and so has the batch when an advantage is normalized over it: with several ranks,
        gather rewards, values and KL and call this on every rank with all rows.

        Raises `DataError` where the batch lacks the values or the KL that the algorithm needs.
        """
        if self.needs_value and batch.value_RT is None:
            raise DataError(f"algorithm {self.name!r} needs a value head: the batch has no values")
        advantage_RT = _ADVANTAGES[self.advantage].function(batch, self)
        if advantage_RT.shape != batch.acts_RT.shape:
            raise DataError(
                f"advantage {self.advantage!r} returned shape {tuple(advantage_RT.shape)}: return one number per "
                f"token, {tuple(batch.acts_RT.shape)}"
            )
        return torch.where(batch.acts_RT, advantage_RT, 0.0)

    def returns(self, batch: RolloutBatch, advantage_RT: Tensor) -> Tensor:
        """Return targets of the value head: GAE's lambda-returns, float32, shape (R, T), 0 outside `batch.acts_RT`.

        If the advantage is plain "gae", they are `advantage_RT + value_RT`. Other advantages, such as normalized ones,
        do not add up to returns, so GAE is computed here.
        """
        if batch.value_RT is None:
            raise DataError(
                f"algorithm {self.name!r}: returns are targets of a value head, and the batch has no values"
            )
        if self.advantage != "gae":
            advantage_RT = gae_of(batch, self)
        return torch.where(batch.acts_RT, advantage_RT + batch.value_RT, 0.0)

    def token_losses(
        self, logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the policy loss of each decision, not yet reduced, and whether it was clipped; both (R, T).

        The loss is 0 and the flag False outside `acts_RT`. Multiply by `token_weights` and sum.
        """
        loss_RT, clipped_RT = _OBJECTIVES[self.objective](logp_RT, old_logp_RT, advantage_RT, acts_RT, self)
        return torch.where(acts_RT, loss_RT, 0.0), clipped_RT & acts_RT


AdvantageFunction = Callable[[RolloutBatch, Algorithm], Tensor]
"""From a batch to (R, T) advantages; values outside the decisions are not read."""
ObjectiveFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Algorithm], tuple[Tensor, Tensor]]
"""From `(logp_RT, old_logp_RT, advantage_RT, acts_RT, algorithm)` to `(loss_RT, clipped_RT)`."""


@dataclass(frozen=True)
class _Advantage:
    function: AdvantageFunction
    needs_value: bool
    compares_samples: bool


_RANGES = (
    ("clip_low", 0.0, 1.0),
    ("clip_high", 0.0, math.inf),
    ("dual_clip", 1.0, math.inf),
    ("kl_coefficient", 0.0, math.inf),
    ("entropy_coefficient", 0.0, math.inf),
    ("off_policy_cap", 0.0, math.inf),
    ("overlong_buffer", 0.0, math.inf),
    ("gamma", 0.0, 1.0),
    ("lam", 0.0, 1.0),
    ("value_coefficient", 0.0, math.inf),
    ("value_clip", 0.0, math.inf),
    ("updates_per_batch", 1, math.inf),
    ("minibatches", 1, math.inf),
)
_MAY_BE_NONE = ("dual_clip", "off_policy_cap", "value_clip")


def token_weights(
    acts_RT: Tensor, aggregation: Aggregation, *, num_decisions: int, num_rows: int, max_new_tokens: int
) -> Tensor:
    """Return weights that make `(weights * loss_RT).sum()` the batch's loss; float32, (R, T), 0 outside `acts_RT`.

        "token"      1 / num_decisions                     mean over decisions: DAPO (arXiv 2503.14476, equation 8)
        "sequence"   1 / (num_rows * the row's decisions)  mean of the rows' means: GRPO (arXiv 2402.03300, equation 3)
        "length"     1 / (num_rows * max_new_tokens)       sum over a constant: Dr. GRPO (arXiv 2503.20783)

    Args:
        acts_RT: bool, the decisions of some or all rows of the batch.
        aggregation: one of the three.
        num_decisions: of the *whole* batch, over all micro-batches and ranks, so that their losses add up.
        num_rows: of the whole batch, rows without decisions included.
        max_new_tokens: the length limit.

    Under DDP, which averages gradients over ranks, multiply the loss by the number of ranks.
    """
    check_known("aggregation", aggregation, get_args(Aggregation))
    weights_RT = acts_RT.float()
    if aggregation == "token":
        return weights_RT / max(1, num_decisions)
    if aggregation == "length":
        return weights_RT / (num_rows * max_new_tokens)
    return weights_RT / (weights_RT.sum(1, keepdim=True).clamp(min=1.0) * num_rows)


def row_rewards(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    """Return one reward per row, shape (R,): the judge's, less the summed KL if the KL is in the reward."""
    penalty_RT = _kl_penalty(batch, algorithm)
    return batch.reward_R if penalty_RT is None else batch.reward_R - penalty_RT.sum(1)


def decision_rewards(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    """Return each decision's reward, shape (R, T); see `ra3gym.agents.rlvr.algorithms.advantages.decision_rewards`."""
    return advantages.decision_rewards(
        batch.reward_R, batch.duration_RT, batch.acts_RT, algorithm.gamma, _kl_penalty(batch, algorithm)
    )


def gae_of(batch: RolloutBatch, algorithm: Algorithm) -> Tensor:
    """Return GAE of a batch with values, shape (R, T)."""
    if batch.value_RT is None:
        raise DataError(f"algorithm {algorithm.name!r}: GAE needs the values of a value head, and the batch has none")
    reward_RT = decision_rewards(batch, algorithm)
    return advantages.gae(
        reward_RT, batch.value_RT, batch.duration_RT, batch.acts_RT, gamma=algorithm.gamma, lam=algorithm.lam
    )


def _kl_penalty(batch: RolloutBatch, algorithm: Algorithm) -> Tensor | None:
    """Return the coefficient times the KL at decisions; `None` if the KL is not in the reward."""
    if algorithm.kl_coefficient == 0 or algorithm.kl_place != "reward":
        return None
    if batch.kl_RT is None:
        raise DataError(f"algorithm {algorithm.name!r} subtracts the KL from the reward: the batch has no KL")
    return algorithm.kl_coefficient * torch.where(batch.acts_RT, batch.kl_RT, 0.0)


_ADVANTAGES: Registry[_Advantage] = Registry("advantage", "register_advantage")
_OBJECTIVES: Registry[ObjectiveFunction] = Registry("objective", "register_objective")


def register_advantage(
    name: str, function: AdvantageFunction, *, needs_value: bool = False, compares_samples: bool = False
) -> None:
    """Make `function(batch, algorithm) -> (R, T)` available as an algorithm's `advantage`.

    An advantage of that name is replaced.

    Args:
        name: what an `Algorithm` calls it.
        function: computes the advantages.
        needs_value: train a value head; its estimates are `batch.value_RT`.
        compares_samples: the advantage is 0 or undefined for a task's only sample, so groups of one are refused.
    """
    _ADVANTAGES.register(name, _Advantage(function, needs_value, compares_samples))


def register_objective(name: str, function: ObjectiveFunction) -> None:
    """Make `function(logp_RT, old_logp_RT, advantage_RT, acts_RT, algorithm)` available as an algorithm's `objective`.

    It returns `(loss_RT, clipped_RT)`: the loss per token, not reduced, and a bool mask for the statistics. An
    objective of that name is replaced.
    """
    _OBJECTIVES.register(name, function)


def check_known(kind: str, name: str, known: Collection[str]) -> None:
    """Raise `UnknownNameError` unless `name` is among `known`."""
    if name not in known:
        raise UnknownNameError(kind, name, known)
