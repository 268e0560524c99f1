"""Action pruning: which actions (options, latents, tokens) to keep.

Each rule chooses a subset Z' of Z actions and returns a `PrunedActions` report: what it kept, how many samples it chose
by, how much of an expert it covers, and the pruning error as far as the `Evidence` tells. `by_elimination` is the
pruning theorem's rule. `ra3gym.envs.wrappers.PruneActions` takes a report, or any subset.

Shape suffixes: N samples, Z actions.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.options.mdp import FloatArray
from ra3gym.abstractions.pruning.elimination import by_elimination, samples_needed
from ra3gym.abstractions.pruning.pruned_actions import NO_EVIDENCE, Evidence, PrunedActions, assess, checked_actions
from ra3gym.errors import ConfigError, DataError, UnknownNameError

__all__ = [
    "Evidence",
    "PrunedActions",
    "TokenCategory",
    "assess",
    "at_random",
    "by_elimination",
    "by_expert_frequency",
    "by_policy_mass",
    "by_syntax",
    "samples_needed",
    "token_category",
]

TokenCategory = Literal[
    "keyword", "builtin", "name", "number", "string", "comment", "operator", "newline", "space", "mixed", "empty"
]


def by_expert_frequency(
    experts: Sequence[npt.ArrayLike],
    num_actions: int,
    *,
    size: int | None = None,
    coverage: float | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> PrunedActions:
    """Keep what experts do most: the `size` commonest actions, or the fewest that make up a `coverage` of their
    decisions. Among equally common ones the lower index goes first.

    Raises:
        ConfigError: not exactly one of `size` (1 to Z) and `coverage` (in (0, 1]).
        DataError: no decisions, or actions that are none of the Z.
    """
    taken = [checked_actions(one, num_actions) for one in experts]
    if not sum(map(len, taken)):
        raise DataError("experts hold no decision: give at least one")
    count_Z = np.bincount(np.concatenate(taken), minlength=num_actions)
    order_Z = np.argsort(-count_Z, kind="stable")
    if (size is None) == (coverage is None):
        raise ConfigError("give either size or coverage")
    if coverage is not None:
        if not 0.0 < coverage <= 1.0:
            raise ConfigError(f"coverage={coverage}: give a share of the decisions in (0, 1]")
        size = _fewest(count_Z[order_Z] / count_Z.sum(), coverage)
    kept = order_Z[: _checked_size(size, num_actions)]
    return assess(kept, num_actions, rule="expert frequency", samples=int(count_Z.sum()), evidence=evidence)


def by_policy_mass(
    probabilities: npt.ArrayLike, *, mass: float = 0.9, evidence: Evidence = NO_EVIDENCE
) -> PrunedActions:
    """Top-p: keep the fewest actions to which a policy gives at least `mass`, on average over states.

    Args:
        probabilities: `(Z,)`, or `(N, Z)` for N states.
        mass: in (0, 1]; 0.9 to 0.99 is usual.
        evidence: for the report.

    Raises:
        ConfigError: a mass outside (0, 1].
        DataError: rows that are no distributions.
    """
    if not 0.0 < mass <= 1.0:
        raise ConfigError(f"mass={mass}: give a probability in (0, 1]")
    rows = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
    if rows.ndim != 2 or not rows.size or (rows < 0.0).any() or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-5):
        raise DataError(f"probabilities of shape {rows.shape}: rows must be distributions over the actions")
    mean_Z = rows.mean(axis=0)
    order_Z = np.argsort(-mean_Z, kind="stable")
    size = _fewest(mean_Z[order_Z] / mean_Z.sum(), mass)
    return assess(order_Z[:size], len(mean_Z), rule=f"policy mass {mass}", samples=len(rows), evidence=evidence)


def at_random(
    num_actions: int, size: int, rng: np.random.Generator, *, evidence: Evidence = NO_EVIDENCE
) -> PrunedActions:
    """Keep `size` actions drawn without replacement: the control beside other rules; `ConfigError` for a bad size."""
    kept = rng.choice(num_actions, size=_checked_size(size, num_actions), replace=False)
    return assess(kept, num_actions, rule="random", evidence=evidence)


def by_syntax(
    texts: Sequence[str],
    *,
    keep: Collection[TokenCategory] | None = None,
    drop: Collection[TokenCategory] = (),
    evidence: Evidence = NO_EVIDENCE,
) -> PrunedActions:
    """Keep the actions whose text is of certain categories of Python (`token_category`).

    Args:
        texts: of each action; of a token, what it decodes to.
        keep: categories to keep; `None` for all.
        drop: categories to drop all the same.
        evidence: for the report.

    Raises:
        UnknownNameError: no such category.
        ConfigError: nothing is kept.
    """
    known = get_args(TokenCategory)
    for name in (*(keep or ()), *drop):
        if name not in known:
            raise UnknownNameError("token category", name, known)
    wanted = (set(known) if keep is None else set(keep)) - set(drop)
    kept = [i for i, text in enumerate(texts) if token_category(text) in wanted]
    if not kept:
        raise ConfigError(f"no action is of the categories {', '.join(sorted(wanted)) or '(none)'}: keep more of them")
    return assess(kept, len(texts), rule=f"syntax: {', '.join(sorted(wanted))}", evidence=evidence)


_WHOLE: tuple[tuple[TokenCategory, re.Pattern[str]], ...] = (
    ("name", re.compile(r"[^\W\d]\w*")),
    ("number", re.compile(r"\d[\w.]*")),
    ("operator", re.compile(r"[^\w\s\"'#]+")),
)


def token_category(text: str) -> TokenCategory:
    """What part of Python a token's text is, without the spaces around it.

    A piece of a name is a "name" too ("keyword" and "builtin" are whole words); what holds a quote is a "string", what
    holds a `#` outside one a "comment"; a line break makes it a "newline". "mixed" is what joins several kinds, such as
    `f(x`; "empty" the text of special tokens that decode to nothing.
    """
    body = text.strip()
    if not body:
        return "newline" if "\n" in text else "space" if text else "empty"
    if any(quote in body for quote in "\"'"):
        return "string"
    if "#" in body:
        return "comment"
    if keyword.iskeyword(body):
        return "keyword"
    if body in dir(builtins):
        return "builtin"
    for name, pattern in _WHOLE:
        if pattern.fullmatch(body):
            return name
    return "mixed"


def _fewest(share_Z: FloatArray, wanted: float) -> int:
    """How many of the leading shares add up to what is wanted; rounding does not add another."""
    return min(int(np.searchsorted(np.cumsum(share_Z), wanted - 1e-12)) + 1, len(share_Z))


def _checked_size(size: int | None, num_actions: int) -> int:
    if size is None or not 1 <= size <= num_actions:
        raise ConfigError(f"size={size}: keep 1 to {num_actions} actions")
    return size
