"""The pruning theorem's rule: eliminate every set of actions that some expert sample speaks against.

As we have it, the theorem of RA3 (arXiv 2509.25810) says that about `|Z_eps| log(|Z| / delta) / sigma` expert samples
remove every (eps, sigma)-suboptimal action with probability 1 - delta, where Z_eps is the smallest set of actions that
is good to within eps. The reading below, the rule and the proof are ours:

- A sample is a task M drawn from p(M), with an expert that shows what can be reached in it.
- A set Z' is (eps, sigma)-suboptimal if it fails too often: `P_M(V*_Z(s0) - V*_Z'(s0) > eps) >= sigma`.
- The rule keeps a candidate of size k = |Z_eps|, or of a smaller one, that no sample speaks against. A suboptimal one
  survives n samples with probability at most `(1 - sigma)^n <= exp(-sigma n)`, and there are at most |Z|^k candidates.
  So all suboptimal ones are gone with probability 1 - delta once `n >= (k log|Z| + log(1 / delta)) / sigma`, which the
  theorem's number covers.

Z_eps itself survives if it is good to within eps in *every* task. Shape suffixes: N samples, Z actions, C candidates of
k actions, T tasks.
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
"""Sets that are looked through one by one; with more, the search is greedy."""


def samples_needed(size: int, num_actions: int, *, sigma: float, delta: float) -> int:
    """The theorem's number of expert samples, `size * log(num_actions / delta) / sigma`, rounded up.

    Args:
        size: |Z_eps|.
        num_actions: |Z|.
        sigma: the rate of failure that makes a set suboptimal, in (0, 1].
        delta: the probability that one survives, in (0, 1).

    Raises:
        ConfigError: a number outside its range.
    """
    if not 1 <= size <= num_actions or not (0.0 < sigma <= 1.0 and 0.0 < delta < 1.0):
        raise ConfigError(
            f"size={size} must be 1 to num_actions={num_actions}, sigma={sigma} in (0, 1] and delta={delta} in (0, 1)"
        )
    return math.ceil(size * math.log(num_actions / delta) / sigma)


def candidate_sets(num_actions: int, size: int) -> IntArray:
    """All sets of `size` of the actions, `(C, k)`, in lexicographic order."""
    return np.array(list(combinations(range(num_actions), size)), dtype=np.int64).reshape(-1, size)


def candidate_errors(tasks: Sequence[OptionMDP], candidates: IntArray, actions: Actions = "options") -> FloatArray:
    """The exact pruning error of each candidate in each task, `(C, T)`; indices count within `actions`."""
    error_CT = np.empty((len(candidates), len(tasks)))
    for t, task in enumerate(tasks):
        indices = task.action_indices(actions)
        best = float(task.start_S @ optimal_values(task, indices))
        for c, kept in enumerate(candidates):
            error_CT[c, t] = best - float(task.start_S @ optimal_values(task, indices[kept]))
    return error_CT


def smallest_good_set(tasks: Sequence[OptionMDP], eps: float, actions: Actions = "options") -> IntArray:
    """Z_eps by looking through all sets: the smallest whose pruning error is at most `eps` in every task.

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
        error_C = candidate_errors(tasks, candidates, actions).max(axis=1)
        if error_C.min() <= eps:
            return np.asarray(candidates[error_C.argmin()], dtype=np.int64)
    return np.arange(num_actions)


def by_elimination(
    samples: Sequence[OptionMDP] | BoolArray,
    *,
    eps: float = 0.0,
    size: int | None = None,
    actions: Actions = "options",
    evidence: Evidence = NO_EVIDENCE,
) -> PrunedActions:
    """Keep a set of actions that no expert sample speaks against.

    Args:
        samples: tasks drawn from p(M), repeated as they were drawn: a set is spoken against by a task in which its
            pruning error exceeds `eps`. Or, where V* is not known, bool `(N, Z)`: the actions that would do for each
            sample (the expert's own; or all latents under which its line is nearly as likely), and a set is spoken
            against where it holds none of them.
        eps: in units of return; not read for a table.
        size: |Z'|; `None` for the smallest size at which a set is left.
        actions: of the tasks, among which indices count; not read for a table.
        evidence: for the report; tasks given as samples do not stand for it.

    With at most `MAX_CANDIDATES` sets of a size, all are looked through, and of those left the one with the least mean
    error (in a table: with the most actions that would do) is kept. With more, actions are dropped one by one while
    none of the samples objects, the least missed first; the report's rule says "greedy" then.

    Raises:
        ConfigError: an eps below 0, or a size at which no set is left.
        DataError: no samples, a table of another shape, or a sample for which no action does.
    """
    if eps < 0.0:
        raise ConfigError(f"eps={eps}: an accuracy is not negative")
    if len(samples) == 0:
        raise DataError("samples hold nothing: give at least one task, or one row of a table")
    judged = _Table(samples) if isinstance(samples, np.ndarray) else _Tasks(samples, eps, actions)
    Z = judged.num_actions
    if size is not None and not 1 <= size <= Z:
        raise ConfigError(f"size={size}: keep 1 to {Z} actions")
    for k in range(1, Z + 1) if size is None else (size,):
        if math.comb(Z, k) > MAX_CANDIDATES:
            kept = _drop_greedily(judged, size)
            return assess(kept, Z, rule="elimination (greedy)", samples=judged.num_samples, evidence=evidence)
        candidates = candidate_sets(Z, k)
        cost_C = judged.costs(candidates)
        if np.isfinite(cost_C).any():
            kept = candidates[cost_C.argmin()]
            return assess(kept, Z, rule="elimination", samples=judged.num_samples, evidence=evidence)
    raise ConfigError(f"no set of {size} actions is left: raise size or eps")


class _Tasks:
    """Samples that are MDPs; each distinct one is solved once, and counts as often as it was drawn."""

    def __init__(self, samples: Sequence[OptionMDP], eps: float, actions: Actions) -> None:
        counts: dict[int, int] = {}
        for task in samples:
            counts[id(task)] = counts.get(id(task), 0) + 1
        self.tasks = list({id(task): task for task in samples}.values())
        self.share_T = np.array([counts[id(task)] for task in self.tasks]) / len(samples)
        self.num_samples = len(samples)
        self.num_actions = len(self.tasks[0].action_indices(actions))
        self._eps, self._actions = eps, actions

    def costs(self, candidates: IntArray) -> FloatArray:
        """The mean pruning error of each candidate, `(C,)`; `inf` where a sample speaks against it."""
        error_CT = candidate_errors(self.tasks, candidates, self._actions)
        # An error of exactly eps must not fail on rounding.
        slack = 1e-9 * (1.0 + self._eps)
        return np.where((error_CT > self._eps + slack).any(axis=1), np.inf, error_CT @ self.share_T)


class _Table:
    """Samples that say which actions would do."""

    def __init__(self, does_NZ: BoolArray) -> None:
        if does_NZ.ndim != 2 or does_NZ.dtype != np.bool_ or not does_NZ.size:
            raise DataError(f"samples of shape {does_NZ.shape}, {does_NZ.dtype}: a table is bool, (N, Z)")
        if not does_NZ.any(axis=1).all():
            raise DataError(f"sample {int((~does_NZ.any(axis=1)).argmax())} names no action that would do")
        self.num_samples, self.num_actions = does_NZ.shape
        # Equal samples speak against the same sets.
        self._does_RZ, self._count_R = np.unique(does_NZ, axis=0, return_counts=True)

    def costs(self, candidates: IntArray) -> FloatArray:
        """Minus the mean number of actions that would do, `(C,)`; `inf` where a sample has none of them."""
        held_C, total_C = np.ones(len(candidates), dtype=np.bool_), np.zeros(len(candidates))
        for does_Z, count in zip(self._does_RZ, self._count_R.tolist(), strict=True):
            found_C = does_Z[candidates].sum(axis=1)
            held_C &= found_C > 0
            total_C += found_C * count
        return np.where(held_C, -total_C / self.num_samples, np.inf)


def _drop_greedily(judged: _Tasks | _Table, size: int | None) -> IntArray:
    """Drop actions one by one, the least missed first, down to the size or while no sample objects."""
    kept = np.arange(judged.num_actions)
    while len(kept) > (size or 1):
        without = np.array([np.delete(kept, i) for i in range(len(kept))])
        cost_C = judged.costs(without)
        if not np.isfinite(cost_C).any():
            break
        kept = without[int(cost_C.argmin())]
    if size is not None and len(kept) > size:
        raise ConfigError(
            f"dropping one by one leaves {len(kept)} actions that samples ask for: raise size={size} or eps"
        )
    return kept
