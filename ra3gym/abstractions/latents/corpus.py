"""Expert traces as arrays, for the inference of a codebook.

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
"""Word 0 is in every prompt, for latents that no other word calls for; word 1 is the only word of an empty prompt."""

_SKIPPED = frozenset(
    {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
)
_KEPT_NAMES = frozenset(keyword.kwlist) | frozenset(dir(builtins))


@lru_cache(maxsize=200_000)
def line_template(line: str) -> str:
    """Return the line's indent width, and the line with names replaced by `_0, _1, ...` in order of appearance.

    `"    total += v\\n"` becomes `"4 _0 += _1"`, so that lines that differ only in names have the same template.
    Keywords, builtins and attributes stay. A line that is no code by itself (prose in a multi-line string, for example)
    keeps its text, unless it only leaves a bracket open.
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
    """Return the words of a prompt's comment lines, in order; empty when it has none."""
    comments = (line.lstrip()[1:] for line in prompt.splitlines() if line.lstrip().startswith("#"))
    return [word for comment in comments for word in comment.split()]


@dataclass(frozen=True)
class LineCorpus:
    """Encoded traces; distinct lines are distinct templates.

    Attributes:
        templates: the U distinct lines.
        words: the W words.
        line_N: each line, as index of its template.
        previous_N: the line before it; U, an index of its own, at first lines.
        pair_N: its pair of previous line and line, as index among the Y distinct pairs.
        pair_line_Y: the line of each distinct pair.
        pair_previous_Y: the previous line of each distinct pair.
        offsets: M + 1 ints; the lines of trace m are `offsets[m]:offsets[m + 1]`.
        word_ids: the words of each trace's prompt, one trace after the other: `BACKGROUND_WORD` and the words of its
            comments, or only `NO_PROMPT_WORD`.
        word_offsets: M + 1 ints; the words of trace m are `word_offsets[m]:word_offsets[m + 1]`.
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
        """bool, true for traces whose prompt has words."""
        return np.equal(self.word_ids[self.word_offsets[:-1]], BACKGROUND_WORD)

    def traces(self, chosen_M: npt.NDArray[np.bool_]) -> LineCorpus:
        """Return the corpus of the chosen traces, with the same distinct lines, pairs and words."""
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
    """Encode traces.

    Raises:
        DataError: no traces, or a trace without lines.
    """
    if not traces:
        raise DataError("there are no traces to infer latents over: the E-step needs at least one expert trace")
    templates: dict[str, int] = {}
    words: dict[str, int] = {"<background>": BACKGROUND_WORD, "<no prompt>": NO_PROMPT_WORD}
    lines: list[int] = []
    offsets, word_offsets = [0], [0]
    word_ids: list[int] = []
    for trace in traces:
        if not trace.steps:
            raise DataError(f"trace {trace.task.task_id!r} has no lines; drop it before the E-step")
        lines += [templates.setdefault(line_template(step), len(templates)) for step in trace.steps]
        offsets.append(len(lines))
        comment_words = [words.setdefault(word, len(words)) for word in prompt_words(trace.prompt)]
        word_ids += [BACKGROUND_WORD, *comment_words] if comment_words else [NO_PROMPT_WORD]
        word_offsets.append(len(word_ids))
    line_N = np.array(lines)
    previous_N = np.concatenate([[0], line_N[:-1]])
    previous_N[offsets[:-1]] = len(templates)
    pairs, pair_N = np.unique(np.stack([previous_N, line_N], axis=1), axis=0, return_inverse=True)
    return LineCorpus(
        templates=tuple(templates),
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
