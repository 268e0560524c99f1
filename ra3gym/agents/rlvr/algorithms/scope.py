"""Where RL acts: which of the sampled tokens are decisions, how much each of them weighs, how long each lasts.

A completion is cut into *decisions* (tokens whose log-probability the policy gradient moves) and the rest, which is
context to it. A decision lasts until the next one: its duration, in tokens, is what `gamma ** duration` discounts by.

    all         every token
    code        tokens of code lines
    comments    latents, and the tokens of lines that hold a comment and nothing else (rationale latents)
    latents     latents only
    decisions   latents, and the token that holds the first visible character of each line: `<think>`, a latent or
                the `#` of a comment, against `<act>`, anything else

Lines are told apart by their text: a line whose first visible character is `#` is a comment, inside a string of several
lines too.

Shape suffixes: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra3gym.errors import ConfigError
from ra3gym.lm import latent_ids
from ra3gym.plugins import Registry


@dataclass(frozen=True)
class TokenKinds:
    """What each token of one completion is; lists of its length T."""

    latent: list[bool]
    comment: list[bool]
    """Part of a comment line, from its `#` to its line break."""
    first: list[bool]
    """Holds the first visible character of a line."""


ScopeRule = Callable[[TokenKinds], list[bool]]
"""From the kinds of one completion's tokens to which of them are decisions."""

_RULES: dict[str, ScopeRule] = {
    "all": lambda kinds: [True] * len(kinds.latent),
    "code": lambda kinds: [not (z or c) for z, c in zip(kinds.latent, kinds.comment, strict=True)],
    "comments": lambda kinds: [z or c for z, c in zip(kinds.latent, kinds.comment, strict=True)],
    "latents": lambda kinds: kinds.latent,
    "decisions": lambda kinds: [z or f for z, f in zip(kinds.latent, kinds.first, strict=True)],
}
_SCOPES = Registry("scope", "register_scope", _RULES)


def register_scope(name: str, rule: ScopeRule) -> None:
    """Make `rule` available as a scope; a scope of that name is replaced."""
    _SCOPES.register(name, rule)


def scope_names() -> tuple[str, ...]:
    """Return the names of all scopes, in the order in which they were registered."""
    return _SCOPES.names()


@dataclass(frozen=True)
class Marks:
    """A batch's decisions, rows padded with zeros."""

    acts_RT: Tensor
    """bool; true at decisions."""
    weight_RT: Tensor
    """float32; what a decision's loss is multiplied by, 0 elsewhere."""
    duration_RT: Tensor
    """float32; tokens from a decision to the next one, or to the end; 0 elsewhere. What a row has ahead of its first
    decision counts to none."""


class Scope:
    """Marks the decisions of completions.

    Args:
        name: one of `scope_names()`.
        tokenizer: the policy's.
        latent_weight, comment_weight, code_weight: what decisions of these kinds weigh; 1 leaves the loss as it is, at
            0 a kind is context and no decision.

    Raises:
        UnknownNameError: no scope of that name.
        ConfigError: a negative weight, or "latents" with a tokenizer that has none.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        latent_weight: float = 1.0,
        comment_weight: float = 1.0,
        code_weight: float = 1.0,
    ) -> None:
        self._rule = _SCOPES[name]
        for kind, weight in (("latent", latent_weight), ("comment", comment_weight), ("code", code_weight)):
            if not weight >= 0:
                raise ConfigError(f"{kind}_weight={weight}: give 0 or more")
        self._latents = frozenset(latent_ids(tokenizer))
        if name == "latents" and not self._latents:
            raise ConfigError("act_on='latents' needs a model with latents, and this tokenizer has none: add_latents")
        self._plain = name == "all" and latent_weight == comment_weight == code_weight == 1.0
        self._weights = latent_weight, comment_weight, code_weight
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def mark(self, completions: Sequence[Sequence[int]]) -> Marks:
        """The decisions among these completions' tokens; T is the longest length."""
        shape = len(completions), max(map(len, completions), default=0)
        acts_RT, weight_RT, duration_RT = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape), torch.zeros(shape)
        for row, ids in enumerate(completions):
            if self._plain:
                acts_RT[row, : len(ids)] = True
                weight_RT[row, : len(ids)] = duration_RT[row, : len(ids)] = 1.0
                continue
            kinds = self.kinds(ids)
            acts = self._rule(kinds)
            weights = [self._weight(kinds, t) for t in range(len(ids))]
            at = [t for t, decides in enumerate(acts) if decides and weights[t] > 0]
            acts_RT[row, at] = True
            weight_RT[row, at] = torch.tensor([weights[t] for t in at])
            lasts = np.diff([*at, len(ids)])[: len(at)]
            duration_RT[row, at] = torch.from_numpy(lasts).float()
        return Marks(acts_RT, weight_RT, duration_RT)

    def kinds(self, ids: Sequence[int]) -> TokenKinds:
        """What each token of a completion is. The completion is taken to begin on a line of its own."""
        latent, comment, first = [token in self._latents for token in ids], [False] * len(ids), [False] * len(ids)
        blank, in_comment = True, False  # of the line so far
        for t, token in enumerate(ids):
            if latent[t]:
                continue
            for character in self._piece(token):
                comment[t] |= in_comment
                if character == "\n":
                    blank, in_comment = True, False
                elif blank and not character.isspace():
                    blank, first[t] = False, True
                    in_comment = character == "#"
                    comment[t] |= in_comment
        return TokenKinds(latent, comment, first)

    def _weight(self, kinds: TokenKinds, t: int) -> float:
        latent, comment, code = self._weights
        return latent if kinds.latent[t] else comment if kinds.comment[t] else code

    def _piece(self, token: int) -> str:
        """The token's own text. Parts of a character of several bytes come out as a mark, which is visible."""
        if token not in self._pieces:
            self._pieces[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._pieces[token]
