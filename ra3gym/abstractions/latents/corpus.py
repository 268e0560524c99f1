"""Expert traces as arrays: what the codebook's inference reads.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import builtins
import io
import keyword
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ra3gym.errors import DataError
from ra3gym.tasks.task import ExpertTrace

IntArray = npt.NDArray[np.int64]

BACKGROUND_WORD, NO_PROMPT_WORD = 0, 1
"""Word 0 stands beside every prompt's words (a latent that no word calls for); word 1 stands for a missing prompt."""

_SKIPPED = frozenset(
    {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
)
_KEPT_NAMES = frozenset(keyword.kwlist) | frozenset(dir(builtins))


@lru_cache(maxsize=200_000)
def line_template(line: str) -> str:
    """The line with its own names replaced by `_0, _1, ...` in order of appearance, behind the width of its indent.

    `"    total += v\\n"` becomes `"4 _0 += _1"`: lines that differ only in the choice of names share a type. Keywords,
    builtins and attributes stay. A line that is no code on its own (prose in a multi-line string, say) stands for
    itself; one that merely leaves a bracket open does not.
    """
    body = line.strip()
    indent = len(line) - len(line.lstrip())
    names: dict[str, str] = {}
    parts: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(body).readline):
            if token.type in _SKIPPED:
                continue
            if token.type == tokenize.ERRORTOKEN:
                return f"{indent} {body}"
            text = token.string
            if token.type == tokenize.NAME and text not in _KEPT_NAMES and (not parts or parts[-1] != "."):
                text = names.setdefault(text, f"_{len(names)}")
            parts.append(text)
    except (tokenize.TokenError, SyntaxError) as error:
        if "multi-line statement" not in str(error):
            return f"{indent} {body}"
    return f"{indent} {' '.join(parts)}"


def prompt_words(prompt: str) -> list[str]:
    """The words of the comment lines of a prompt, in order; empty when the prompt documents nothing."""
    comments = (line.lstrip()[1:] for line in prompt.splitlines() if line.lstrip().startswith("#"))
    return [word for comment in comments for word in comment.split()]


@dataclass(frozen=True)
class LineCorpus:
    """Traces, encoded. The lines of trace m are `offsets[m]:offsets[m + 1]`; so are its words in `word_offsets`.

    line_N: type of each line. pair_N: type of its (previous line, line) pair. previous_N: type of the line before
    (`U`, the number of distinct lines, ahead of a first line). pair_line_Y, pair_previous_Y: the two halves of a pair.
    word_ids: words of each trace's prompt, `BACKGROUND_WORD` first, or `NO_PROMPT_WORD` alone.
    """

    templates: tuple[str, ...]
    words: tuple[str, ...]
    line_N: IntArray
    previous_N: IntArray
    pair_N: IntArray
    pair_line_Y: IntArray
    pair_previous_Y: IntArray
    offsets: IntArray
    word_ids: IntArray
    word_offsets: IntArray

    @property
    def num_traces(self) -> int:
        return len(self.offsets) - 1

    @property
    def documented_M(self) -> npt.NDArray[np.bool_]:
        """Which traces have a prompt with words."""
        return np.equal(self.word_ids[self.word_offsets[:-1]], BACKGROUND_WORD)

    def traces(self, chosen_M: npt.NDArray[np.bool_]) -> LineCorpus:
        """The corpus of the chosen traces alone, over the same line types, pairs and words."""
        lengths_M, word_counts_M = np.diff(self.offsets), np.diff(self.word_offsets)
        chosen_N = np.repeat(chosen_M, lengths_M)
        return replace(
            self,
            line_N=self.line_N[chosen_N],
            previous_N=self.previous_N[chosen_N],
            pair_N=self.pair_N[chosen_N],
            offsets=np.concatenate([[0], np.cumsum(lengths_M[chosen_M])]),
            word_ids=self.word_ids[np.repeat(chosen_M, word_counts_M)],
            word_offsets=np.concatenate([[0], np.cumsum(word_counts_M[chosen_M])]),
        )


def encode_traces(traces: Sequence[ExpertTrace]) -> LineCorpus:
    """Encode traces; `DataError` when there are none, or when one has no lines."""
    if not traces:
        raise DataError("there are no traces to infer latents over: the E-step needs at least one expert trace")
    line_types: dict[str, int] = {}
    words: dict[str, int] = {"<background>": BACKGROUND_WORD, "<no prompt>": NO_PROMPT_WORD}
    lines: list[int] = []
    offsets, word_offsets = [0], [0]
    word_ids: list[int] = []
    for trace in traces:
        if not trace.steps:
            raise DataError(f"trace {trace.task.task_id!r} has no lines; drop it before the E-step")
        lines += [line_types.setdefault(line_template(step), len(line_types)) for step in trace.steps]
        offsets.append(len(lines))
        named = [words.setdefault(word, len(words)) for word in prompt_words(trace.prompt)]
        word_ids += [BACKGROUND_WORD, *named] if named else [NO_PROMPT_WORD]
        word_offsets.append(len(word_ids))
    line_N = np.array(lines)
    previous_N = np.concatenate([[0], line_N[:-1]])
    previous_N[offsets[:-1]] = len(line_types)
    pairs, pair_N = np.unique(np.stack([previous_N, line_N], axis=1), axis=0, return_inverse=True)
    return LineCorpus(
        templates=tuple(line_types),
        words=tuple(words),
        line_N=line_N,
        previous_N=previous_N,
        pair_N=pair_N.reshape(-1).astype(np.int64),
        pair_line_Y=np.ascontiguousarray(pairs[:, 1]),
        pair_previous_Y=np.ascontiguousarray(pairs[:, 0]),
        offsets=np.array(offsets),
        word_ids=np.array(word_ids),
        word_offsets=np.array(word_offsets),
    )
