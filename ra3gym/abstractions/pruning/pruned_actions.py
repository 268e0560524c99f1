"""What a rule of pruning returns: the actions kept, and what is known of their cost.

RA3's regret splits into what the kept actions Z' cannot express (the *pruning error* `V*_Z(s0) - V*_Z'(s0)`) and what
RL has not found inside them. How much a report can say of the error depends on the `Evidence`:

- tasks that are known MDPs: exact, averaged over them;
- episodes of an expert: a bound. Follow the expert until it takes an action that was dropped: only episodes with such
  an action lose anything, at most the range of returns each. So the expert's value exceeds the best that is possible
  with Z' by at most `return_range * P(an episode holds a dropped action)`; this is the pruning error's bound where the
  expert is optimal. The probability is taken at the upper end of its (Clopper-Pearson) confidence interval, which holds
  for episodes that had no part in choosing Z';
- nothing: unknown.
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
    """What is known of a problem beside the samples that a rule chooses by.

    Args:
        experts: episodes, each the actions that an expert took; held out, for the bound to hold.
        tasks: MDPs with known optimum.
        actions: the set of the tasks' actions that is pruned; actions are counted within it, as the environment's are.
        return_range: the largest return less the smallest one of an episode, 1 for a share of tests passed.
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
    """A subset of actions, and what is known of it."""

    kept: tuple[int, ...]
    """Ascending."""
    num_actions: int
    """Z, before pruning."""
    rule: str
    samples: int
    """How many samples the rule chose by; 0 if it needs none."""
    expert_coverage: float | None
    """Share of the decisions in `Evidence.experts` whose action is kept."""
    pruning_error: float | None
    """In units of return."""
    error_is: ErrorKind

    @property
    def size(self) -> int:
        return len(self.kept)

    @property
    def mask(self) -> BoolArray:
        """bool `(Z,)`: what is kept."""
        mask_Z = np.zeros(self.num_actions, dtype=np.bool_)
        mask_Z[list(self.kept)] = True
        return mask_Z


def assess(
    kept: Collection[int] | IntArray, num_actions: int, *, rule: str, samples: int = 0, evidence: Evidence = NO_EVIDENCE
) -> PrunedActions:
    """The report on a subset, however it was chosen.

    Raises:
        ConfigError: an empty subset, an index out of range or given twice, or a confidence outside (0, 1).
        DataError: experts with actions that are none of the Z, or tasks with another number of them.
    """
    ordered = tuple(sorted(int(one) for one in kept))
    if not ordered or len(set(ordered)) < len(ordered) or ordered[0] < 0 or ordered[-1] >= num_actions:
        raise ConfigError(f"kept={ordered}: give at least one action, each once, from 0 to {num_actions - 1}")
    if not 0.0 < evidence.confidence < 1.0:
        raise ConfigError(f"confidence={evidence.confidence} must lie in (0, 1)")
    is_kept_Z = np.isin(np.arange(num_actions), ordered)
    episodes = [is_kept_Z[checked_actions(one, num_actions)] for one in evidence.experts]
    taken = sum(map(len, episodes))
    coverage = sum(int(one.sum()) for one in episodes) / taken if taken else None
    error, kind = _error(np.array(ordered), num_actions, episodes, evidence)
    return PrunedActions(ordered, num_actions, rule, samples, coverage, error, kind)


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
        dropped = sum(not one.all() for one in episodes)
        whole = len(episodes) - dropped
        upper = float(betaincinv(dropped + 1, whole, evidence.confidence)) if whole else 1.0
        return evidence.return_range * upper, "bound"
    return None, "unknown"


def checked_actions(actions: npt.ArrayLike, num_actions: int) -> IntArray:
    """The actions as int64; `DataError` for what is none of the Z."""
    found = np.atleast_1d(np.asarray(actions))
    if not found.size:
        return np.zeros(0, dtype=np.int64)
    if not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= num_actions:
        raise DataError(
            f"an expert's actions must be integers from 0 to {num_actions - 1}; {found.tolist()[:5]} are not"
        )
    return found.astype(np.int64)
