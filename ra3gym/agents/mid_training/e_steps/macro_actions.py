"""Macro-actions as an E-step: frequent runs of lines, found as byte-pair encoding finds words.

Nothing is learned of what lines are for: the latents say what lines look like (Gage 1994; Sennrich et al. 2016,
arXiv 1508.07909).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError
from ra3gym.tasks import ExpertTrace

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MacroEStep:
    """Infers macro-actions: a segment is an instance of a frequent run of lines, and its latent says which run.

    At first each type of line is a macro. Then the most frequent pair of neighbors becomes one macro, repeatedly.
    Latents number the macros by how often they occur; the rarest share the last latent.

    Attributes:
        num_latents: K, at least 2.
        merges: how often two neighbors become one, 0 to a few hundred: more merges, longer segments.
        min_count: a pair that occurs less often is not merged, so that no macro is a single program.
    """

    num_latents: int = 48
    merges: int = 64
    min_count: int = 5

    def __post_init__(self) -> None:
        if self.num_latents < 2:
            raise ConfigError(f"num_latents={self.num_latents}: give at least 2, the last is for what is rare")
        if self.merges < 0 or self.min_count < 1:
            raise ConfigError(f"merges={self.merges}, min_count={self.min_count}: give at least 0 and 1")

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `rng` is not read. Metrics: `macros` (distinct ones), `shared` (the share of segments
        under the last latent, when several macros share it) and `seconds`."""
        started = time.perf_counter()
        corpus = encode_traces(traces)
        macro_S, length_S = merge_neighbors(corpus.line_N, corpus.offsets, self.merges, self.min_count)
        macros, macro_S, count_U = np.unique(macro_S, return_inverse=True, return_counts=True)
        rank_U = np.empty(len(macros), dtype=np.int64)
        rank_U[np.argsort(-count_U, kind="stable")] = np.arange(len(macros))
        latent_S = np.minimum(rank_U, self.num_latents - 1)[macro_S]
        latent_N = np.repeat(latent_S, length_S)
        switch_N = np.zeros(len(latent_N), dtype=bool)
        switch_N[np.cumsum(length_S) - length_S] = True
        paths = [
            LatentPath(tuple(latent_N[a:b].tolist()), tuple(switch_N[a:b].tolist()))
            for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
        ]
        crowded = len(macros) > self.num_latents
        return Annotations(
            paths=tuple(paths),
            names=names_by_company(traces, paths, self.num_latents),
            metrics={
                "macros": float(len(macros)),
                "shared": float((latent_S == self.num_latents - 1).mean()) if crowded else 0.0,
                "seconds": time.perf_counter() - started,
            },
        )

    def with_codebook(self, change: Callable[[CodebookConfig], CodebookConfig]) -> Self:
        """Return the same E-step with the number of latents that the changed codebook has."""
        return replace(self, num_latents=change(CodebookConfig(num_latents=self.num_latents)).num_latents)


def merge_neighbors(line_N: IntArray, offsets: IntArray, merges: int, min_count: int) -> tuple[IntArray, IntArray]:
    """Return `(macro of each segment, its number of lines)` by byte-pair encoding over line types.

    Macros below `max(line_N) + 1` are single line types; each merge adds one. No segment crosses the end of a trace. In
    a run of equal lines, pairs are counted as they would be merged: from the left, without overlap. Among equally
    frequent pairs, the one with the smallest numbers is merged.
    """
    macro_S, length_S = line_N.astype(np.int64), np.ones(len(line_N), dtype=np.int64)
    last_S = np.zeros(len(line_N), dtype=bool)
    last_S[offsets[1:] - 1] = True
    fresh = int(line_N.max()) + 1
    for macro in range(fresh, fresh + merges):
        paired_S = _pairs(macro_S, last_S)
        left, right = macro_S[paired_S], macro_S[np.flatnonzero(paired_S) + 1]
        pairs, count = np.unique(left * macro + right, return_counts=True)
        if not len(pairs) or count.max() < min_count:
            break
        first, second = divmod(int(pairs[count.argmax()]), macro)
        (heads,) = np.nonzero(paired_S)
        heads = heads[(left == first) & (right == second)]
        macro_S[heads] = macro
        length_S[heads] += length_S[heads + 1]
        last_S[heads] = last_S[heads + 1]
        macro_S, length_S, last_S = (np.delete(array, heads + 1) for array in (macro_S, length_S, last_S))
    return macro_S, length_S


def _pairs(macro_S: IntArray, last_S: BoolArray) -> BoolArray:
    """Return where a pair of neighbors may start: within one trace, and at every other place of a run of equals."""
    followed_S = ~last_S
    equal_S = np.zeros(len(macro_S), dtype=bool)
    equal_S[:-1] = (macro_S[:-1] == macro_S[1:]) & followed_S[:-1]
    place = np.arange(len(macro_S))
    starts_S = ~np.concatenate([[False], equal_S[:-1]])
    run_start_S = np.maximum.accumulate(np.where(starts_S, place, 0))
    return np.asarray(followed_S & ~(equal_S & ((place - run_start_S) % 2 == 1)))
