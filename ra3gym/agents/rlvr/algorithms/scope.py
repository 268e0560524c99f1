"""Where RL acts: which of the sampled tokens are decisions, with the weight and the duration of each.

The tokens of a completion are *decisions*, whose log-probability the policy gradient changes, or context. A decision
lasts until the next one: its duration, in tokens, is the exponent of the discount `gamma ** duration`.

    all         every token
    code        tokens of code lines
    comments    latents, and the tokens of lines that hold only a comment (rationale latents)
    latents     latents only
    decisions   latents, and the token that holds the first visible character of each line: a latent or the `#` of a
                comment is `<think>`, any other is `<act>`

A line whose first visible character is `#` counts as a comment, even inside a string of several lines.

Shape letters: see CONTRIBUTING.md (R rows, T time).
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
    """The kinds of one completion's tokens, in lists of its length T.

    Attributes:
        latent: the token is a latent.
        comment: it is part of a comment line, from the `#` to the line break.
        first: it holds the first visible character of a line.
    """

    latent: list[bool]
    comment: list[bool]
    first: list[bool]


ScopeRule = Callable[[TokenKinds], list[bool]]
"""From the kinds of one completion's tokens to whether each is a decision."""

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
    """A batch's decisions; rows are padded with zeros.

    Attributes:
        acts_RT: bool; true at decisions.
        weight_RT: float32; factor of a decision's loss, 0 elsewhere.
        duration_RT: float32; number of tokens from a decision to the next one, or to the end; 0 elsewhere. Tokens
            before a row's first decision belong to no decision.
    """

    acts_RT: Tensor
    weight_RT: Tensor
    duration_RT: Tensor

    def without(self, masked_R: Tensor) -> Marks:
        """Return the marks with no decision in these rows."""
        masked_R1 = masked_R[:, None]
        return Marks(
            self.acts_RT & ~masked_R1,
            self.weight_RT.masked_fill(masked_R1, 0.0),
            self.duration_RT.masked_fill(masked_R1, 0.0),
        )


class Scope:
    """Marks the decisions of completions.

    Args:
        name: one of `scope_names()`.
        tokenizer: the policy's.
        latent_weight: factor of the loss of latents; with 0 they are context.
        comment_weight: factor of the loss of comments; with 0 they are context.
        code_weight: factor of the loss of code; with 0 it is context.

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
        """Return the decisions among these completions' tokens; T is the longest length."""
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
        """Return the kinds of a completion's tokens, as if the completion began at the start of a line."""
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
        """Return the token's own text. A part of a character of several bytes becomes "\ufffd", which is visible."""
        if token not in self._pieces:
            self._pieces[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._pieces[token]
