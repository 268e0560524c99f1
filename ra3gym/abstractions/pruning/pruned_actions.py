"""What a pruning rule returns: the kept actions, and what is known about their cost.

RA3's regret splits into what the kept actions Z' cannot express (the *pruning error* `V*_Z(s0) - V*_Z'(s0)`) and what
RL has not yet found inside them. What a report says about the error depends on the `Evidence`:

- Tasks that are known MDPs: the exact error, averaged over them.
- Episodes of an expert: a bound. Follow the expert until it takes a dropped action: only episodes with such an action
  lose return, at most the range of returns each. So the expert's value exceeds the best value with Z' by at most
  `return_range * P(an episode has a dropped action)`. If the expert is optimal, this bounds the pruning error. The
  probability is the upper end of its (Clopper-Pearson) confidence interval, which is valid for episodes that were not
  used to choose Z'.
- Nothing: the error is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from ra3gym.abstractions.options.mdp import Actions, BoolArray, IntArray, OptionMDP
from ra3gym.abstractions.options.solvers import pruning_error
from ra3gym.errors import ConfigError, DataError

ErrorKind = Literal["exact", "bound", "unknown"]


@dataclass(frozen=True)
class Evidence:
    """What is known about a problem besides the samples that a rule chooses by.

    Attributes:
        experts: episodes, each the actions that an expert took; held out, or the bound is not valid.
        tasks: MDPs with known optimum.
        actions: the set of the tasks' actions that is pruned; indices count in it, as those of the environment do.
        return_range: the largest minus the smallest return of an episode, 1 for a share of tests passed.
        confidence: of the bound, in (0, 1).
    """

    experts: Sequence[npt.ArrayLike] = ()
    tasks: Sequence[OptionMDP] = ()
    actions: Actions = "both"
    return_range: float | None = None
    confidence: float = 0.95


NO_EVIDENCE = Evidence()


@dataclass(frozen=True)
class PrunedActions:
    """A subset of actions, and what is known about it.

    Attributes:
        kept: the actions, ascending.
        num_actions: Z, before pruning.
        rule: the rule that chose them.
        samples: how many samples the rule chose by; 0 if it needs none.
        expert_coverage: share of the decisions in `Evidence.experts` whose action is kept.
        experts: number of episodes in `Evidence.experts`.
        experts_lost: how many of them have an action that is not kept: what the expert would lose at most, as measured.
        pruning_error: in units of return.
        error_is: whether the error is exact, a bound or unknown.
    """

    kept: tuple[int, ...]
    num_actions: int
    rule: str
    samples: int
    expert_coverage: float | None
    pruning_error: float | None
    error_is: ErrorKind
    experts: int = 0
    experts_lost: int = 0

    @property
    def size(self) -> int:
        return len(self.kept)

    @property
    def mask(self) -> BoolArray:
        """bool `(Z,)`, true at kept actions."""
        mask_Z = np.zeros(self.num_actions, dtype=np.bool_)
        mask_Z[list(self.kept)] = True
        return mask_Z


def assess(
    kept: Collection[int] | IntArray, num_actions: int, *, rule: str, samples: int = 0, evidence: Evidence = NO_EVIDENCE
) -> PrunedActions:
    """Report on a subset of actions, whichever way it was chosen.

    Raises:
        ConfigError: an empty subset, an index out of range or given twice, or a confidence outside (0, 1).
        DataError: experts with actions out of range, or tasks with another number of actions.
    """
    ordered = tuple(sorted(int(action) for action in kept))
    if not ordered or len(set(ordered)) < len(ordered) or ordered[0] < 0 or ordered[-1] >= num_actions:
        raise ConfigError(f"kept={ordered}: give at least one action, each once, from 0 to {num_actions - 1}")
    if not 0.0 < evidence.confidence < 1.0:
        raise ConfigError(f"confidence={evidence.confidence} must lie in (0, 1)")
    is_kept_Z = np.isin(np.arange(num_actions), ordered)
    episodes = [is_kept_Z[checked_actions(episode, num_actions)] for episode in evidence.experts]
    taken = sum(map(len, episodes))
    coverage = sum(int(is_kept.sum()) for is_kept in episodes) / taken if taken else None
    error, kind = _error(np.array(ordered), num_actions, episodes, evidence)
    lost = sum(not is_kept.all() for is_kept in episodes)
    return PrunedActions(ordered, num_actions, rule, samples, coverage, error, kind, len(episodes), lost)


def _error(
    kept: IntArray, num_actions: int, episodes: Sequence[BoolArray], evidence: Evidence
) -> tuple[float | None, ErrorKind]:
    if evidence.tasks:
        errors = []
        for task in evidence.tasks:
            indices = task.action_indices(evidence.actions)
            if len(indices) != num_actions:
                raise DataError(
                    f"a task has {len(indices)} actions ({evidence.actions!r}), the pruned set {num_actions}"
                )
            errors.append(pruning_error(task, indices[kept], indices))
        return float(np.mean(errors)), "exact"
    if episodes and evidence.return_range is not None:
        dropped = sum(not is_kept.all() for is_kept in episodes)
        whole = len(episodes) - dropped
        upper = float(betaincinv(dropped + 1, whole, evidence.confidence)) if whole else 1.0
        return evidence.return_range * upper, "bound"
    return None, "unknown"


def checked_actions(actions: npt.ArrayLike, num_actions: int) -> IntArray:
    """Return the actions of an episode as int64; raises `DataError` for actions out of range."""
    taken = np.atleast_1d(np.asarray(actions))
    if not taken.size:
        return np.zeros(0, dtype=np.int64)
    if not np.issubdtype(taken.dtype, np.integer) or taken.min() < 0 or taken.max() >= num_actions:
        raise DataError(
            f"an expert's actions must be integers from 0 to {num_actions - 1}; {taken.tolist()[:5]} are not"
        )
    return taken.astype(np.int64)
