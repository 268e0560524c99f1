"""Rules of pruning: by expert frequency, by policy mass, by syntax, and at random as the control.

Shape letters: see CONTRIBUTING.md.
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
from ra3gym.abstractions.pruning.pruned_actions import NO_EVIDENCE, Evidence, PrunedActions, assess, checked_actions
from ra3gym.errors import ConfigError, DataError, UnknownNameError

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
    """Keep the actions that experts take most often.

    Among equally common actions, the lower index is kept first.

    Args:
        experts: episodes, each the actions that an expert took.
        num_actions: Z.
        size: how many actions to keep, 1 to Z; or
        coverage: keep the fewest actions that make up this share of the decisions, in (0, 1].
        evidence: for the report.

    Raises:
        ConfigError: not exactly one of `size` and `coverage`, or one out of range.
        DataError: no decisions, or actions out of range.
    """
    taken = [checked_actions(episode, num_actions) for episode in experts]
    if not sum(map(len, taken)):
        raise DataError("experts hold no decision: give at least one episode with one")
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
    """Keep the fewest actions to which a policy gives at least `mass`, on average over states (top-p).

    Args:
        probabilities: `(Z,)`, or `(S, Z)` for S states.
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
    """Keep `size` actions drawn without replacement: the control for other rules.

    Raises:
        ConfigError: a size outside 1 to Z.
    """
    kept = rng.choice(num_actions, size=_checked_size(size, num_actions), replace=False)
    return assess(kept, num_actions, rule="random", evidence=evidence)


def by_syntax(
    texts: Sequence[str],
    *,
    keep: Collection[TokenCategory] | None = None,
    drop: Collection[TokenCategory] = (),
    evidence: Evidence = NO_EVIDENCE,
) -> PrunedActions:
    """Keep the actions whose text belongs to certain categories of Python (`token_category`).

    Args:
        texts: the text of each action; for a token, what it decodes to.
        keep: categories to keep; `None` for all.
        drop: categories to drop; it wins over `keep`.
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
    """Return the category of Python that a token's text belongs to, without the spaces around it.

    - "keyword" and "builtin" are whole words; "name" is any other name or piece of one.
    - "string" is a text with a quote; "comment" a text with a `#` and no quote.
    - "newline" is a line break and spaces; "space" only spaces; "empty" a special token that decodes to nothing.
    - "mixed" joins several categories, such as `f(x`.
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
    """Return how many of the leading shares add up to `wanted`; rounding adds none."""
    return min(int(np.searchsorted(np.cumsum(share_Z), wanted - 1e-12)) + 1, len(share_Z))


def _checked_size(size: int | None, num_actions: int) -> int:
    if size is None or not 1 <= size <= num_actions:
        raise ConfigError(f"size={size}: keep 1 to {num_actions} actions")
    return size
