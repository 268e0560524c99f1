"""The pruning theorem's rule: eliminate every set of actions that some expert sample contradicts.

The theorem of RA3 (arXiv 2509.25810) says that about `|Z_eps| log(|Z| / delta) / sigma` expert samples remove every
(eps, sigma)-suboptimal action with probability 1 - delta, where Z_eps is the smallest set of actions that is good to
within eps. The following interpretation, the rule and the proof are ours:

- A sample is a task drawn from p(task), with an expert that shows which return can be reached in it.
- A set Z' is (eps, sigma)-suboptimal if it fails too often: `P(V*_Z(s0) - V*_Z'(s0) > eps) >= sigma` over tasks.
- The rule keeps a candidate of size k = |Z_eps|, or smaller, that no sample contradicts. A suboptimal candidate
survives
  n samples with probability at most `(1 - sigma)^n <= exp(-sigma n)`, and there are at most |Z|^k candidates. So with
  probability 1 - delta none survives once `n >= (k log|Z| + log(1 / delta)) / sigma`, which the theorem's number
  covers.

Z_eps itself survives if it is good to within eps in *every* task.

Shape letters: see CONTRIBUTING.md (M samples, P distinct tasks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ra3gym.abstractions.options.mdp import Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.abstractions.options.solvers import optimal_values
from ra3gym.abstractions.pruning.pruned_actions import NO_EVIDENCE, Evidence, PrunedActions, assess
from ra3gym.errors import ConfigError, DataError

MAX_CANDIDATES = 20_000
"""With at most so many sets of one size, all are examined; with more, the search is greedy."""


def samples_needed(size: int, num_actions: int, *, sigma: float, delta: float) -> int:
    """Return the theorem's number of expert samples, `size * log(num_actions / delta) / sigma`, rounded up.

    Args:
        size: |Z_eps|.
        num_actions: |Z|.
        sigma: the rate of failure that makes a set suboptimal, in (0, 1].
        delta: the probability that a suboptimal set survives, in (0, 1).

    Raises:
        ConfigError: a number outside its range.
    """
    if not 1 <= size <= num_actions or not (0.0 < sigma <= 1.0 and 0.0 < delta < 1.0):
        raise ConfigError(
            f"size={size} must be 1 to num_actions={num_actions}, sigma={sigma} in (0, 1] and delta={delta} in (0, 1)"
        )
    return math.ceil(size * math.log(num_actions / delta) / sigma)


def candidate_sets(num_actions: int, size: int) -> IntArray:
    """Return all sets of `size` of the actions, `(candidates, size)`, in lexicographic order."""
    return np.array(list(combinations(range(num_actions), size)), dtype=np.int64).reshape(-1, size)


def candidate_errors(tasks: Sequence[OptionMDP], candidates: IntArray, actions: Actions = "options") -> FloatArray:
    """Return the exact pruning error of each candidate in each task, `(candidates, P)`; indices count in `actions`."""
    errors = np.empty((len(candidates), len(tasks)))
    for p, task in enumerate(tasks):
        indices = task.action_indices(actions)
        best = float(task.start_S @ optimal_values(task, indices))
        for c, kept in enumerate(candidates):
            errors[c, p] = best - float(task.start_S @ optimal_values(task, indices[kept]))
    return errors


def smallest_good_set(tasks: Sequence[OptionMDP], eps: float, actions: Actions = "options") -> IntArray:
    """Find Z_eps, the smallest set whose pruning error is at most `eps` in every task, by trying all sets.

    Raises:
        ConfigError: an eps below 0, or more than `MAX_CANDIDATES` sets of one size.
    """
    if eps < 0.0:
        raise ConfigError(f"eps={eps}: an accuracy is not negative")
    num_actions = len(tasks[0].action_indices(actions))
    for size in range(1, num_actions + 1):
        if math.comb(num_actions, size) > MAX_CANDIDATES:
            raise ConfigError(f"{num_actions} actions have more than {MAX_CANDIDATES} sets of {size}: take fewer")
        candidates = candidate_sets(num_actions, size)
        largest_errors = candidate_errors(tasks, candidates, actions).max(axis=1)
        if largest_errors.min() <= eps:
            return np.asarray(candidates[largest_errors.argmin()], dtype=np.int64)
    return np.arange(num_actions)


def by_elimination(
    samples: Sequence[OptionMDP] | BoolArray,
    *,
    eps: float = 0.0,
    size: int | None = None,
    actions: Actions = "options",
    evidence: Evidence = NO_EVIDENCE,
) -> PrunedActions:
    """Keep a set of actions that no expert sample contradicts.

    With at most `MAX_CANDIDATES` sets of a size, all are examined. Of those that remain, the set with the least mean
    error (in a table: with the most suitable actions) is kept. With more sets, actions are dropped one by one, the
    cheapest first, until every further drop is contradicted; the report's rule is then "elimination (greedy)".

    Args:
        samples: tasks drawn from p(task), repeated as they were drawn. A task contradicts a set whose pruning error in
            it exceeds `eps`. Or, where V* is unknown, a table, bool `(M, Z)`: the suitable actions of each sample (that
            of the expert; or all latents under which its line is nearly as likely). A sample contradicts a set without
            any suitable action.
        eps: in units of return; ignored for a table.
        size: |Z'|; `None` for the smallest size at which a set remains.
        actions: the actions of the tasks, among which indices count; ignored for a table.
        evidence: for the report, which does not count the samples themselves as evidence.

    Raises:
        ConfigError: an eps below 0, or a size at which no set remains.
        DataError: no samples, a table of another shape, or a sample without any suitable action.
    """
    if eps < 0.0:
        raise ConfigError(f"eps={eps}: an accuracy is not negative")
    if len(samples) == 0:
        raise DataError("there are no samples: give at least one task, or one row of a table")
    judged = _Table(samples) if isinstance(samples, np.ndarray) else _Tasks(samples, eps, actions)
    Z = judged.num_actions
    if size is not None and not 1 <= size <= Z:
        raise ConfigError(f"size={size}: keep 1 to {Z} actions")
    for k in range(1, Z + 1) if size is None else (size,):
        if math.comb(Z, k) > MAX_CANDIDATES:
            kept = _drop_greedily(judged, size)
            return assess(kept, Z, rule="elimination (greedy)", samples=judged.num_samples, evidence=evidence)
        candidates = candidate_sets(Z, k)
        costs = judged.costs(candidates)
        if np.isfinite(costs).any():
            kept = candidates[costs.argmin()]
            return assess(kept, Z, rule="elimination", samples=judged.num_samples, evidence=evidence)
    raise ConfigError(f"no set of {size} actions is left: raise size or eps")


class _Tasks:
    """Samples that are MDPs; each distinct task is solved once and counts as often as it was drawn."""

    def __init__(self, samples: Sequence[OptionMDP], eps: float, actions: Actions) -> None:
        counts: dict[int, int] = {}
        for task in samples:
            counts[id(task)] = counts.get(id(task), 0) + 1
        self.tasks = list({id(task): task for task in samples}.values())
        self.share_P = np.array([counts[id(task)] for task in self.tasks]) / len(samples)
        self.num_samples = len(samples)
        self.num_actions = len(self.tasks[0].action_indices(actions))
        self._eps, self._actions = eps, actions

    def costs(self, candidates: IntArray) -> FloatArray:
        """The mean pruning error of each candidate, `(candidates,)`; `inf` where a sample contradicts it."""
        errors = candidate_errors(self.tasks, candidates, self._actions)
        # An error of exactly eps must not fail because of rounding.
        slack = 1e-9 * (1.0 + self._eps)
        return np.where((errors > self._eps + slack).any(axis=1), np.inf, errors @ self.share_P)


class _Table:
    """Samples with their suitable actions."""

    def __init__(self, suits_MZ: BoolArray) -> None:
        if suits_MZ.ndim != 2 or suits_MZ.dtype != np.bool_ or not suits_MZ.size:
            raise DataError(f"samples of shape {suits_MZ.shape}, {suits_MZ.dtype}: a table is bool, (samples, actions)")
        if not suits_MZ.any(axis=1).all():
            raise DataError(f"sample {int((~suits_MZ.any(axis=1)).argmax())} has no suitable action")
        self.num_samples, self.num_actions = suits_MZ.shape
        # Equal samples contradict the same sets.
        self._distinct, self._counts = np.unique(suits_MZ, axis=0, return_counts=True)

    def costs(self, candidates: IntArray) -> FloatArray:
        """Minus the mean number of suitable actions, `(candidates,)`; `inf` where a sample contradicts a candidate."""
        remains, total = np.ones(len(candidates), dtype=np.bool_), np.zeros(len(candidates))
        for suits_Z, count in zip(self._distinct, self._counts.tolist(), strict=True):
            suitable = suits_Z[candidates].sum(axis=1)
            remains &= suitable > 0
            total += suitable * count
        return np.where(remains, -total / self.num_samples, np.inf)


def _drop_greedily(judged: _Tasks | _Table, size: int | None) -> IntArray:
    """Drop actions one by one, the cheapest first, down to the size or until every further drop is contradicted."""
    kept = np.arange(judged.num_actions)
    while len(kept) > (size or 1):
        smaller = np.array([np.delete(kept, i) for i in range(len(kept))])
        costs = judged.costs(smaller)
        if not np.isfinite(costs).any():
            break
        kept = smaller[int(costs.argmin())]
    if size is not None and len(kept) > size:
        raise ConfigError(f"dropping one by one leaves {len(kept)} actions that samples need: raise size={size} or eps")
    return kept
