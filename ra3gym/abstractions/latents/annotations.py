"""What an E-step hands to an M-step: latents on every trace, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ra3gym.abstractions.latents.comments import comment_problem, indent_of
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import DataError
from ra3gym.lm import latent_token
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class Annotations:
    """Latents of a corpus of traces.

    Attributes:
        paths: one for each trace, in the order of the corpus.
        names: for each latent, the prompt words that call for it; may be empty.
        metrics: what the E-step measured of itself (evidence in nats, seconds, ...).
        gains: for each trace and line, what the line's latent is worth in nats: the line's log-likelihood under its
            latent minus that with the latent marginalized out under its prior
            (`ra3gym.abstractions.latents.diagnosis.line_gains`). `None` where the E-step has no likelihood.
        comments: rationale latents only: the comment line of each latent, "#" and text without indent and line break.
            The latent with the comment "" writes nothing. `None` for codebook latents, which are special tokens.
        tokens: the special token that each latent is written as, "" for none; `None` for the latents' own
            (`ra3gym.lm.latent_token`).

    Raises:
        DataError: gains of another shape than the paths; not one comment or token for each latent; a comment that is
            no comment line.
    """

    paths: tuple[LatentPath, ...]
    names: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    gains: tuple[tuple[float, ...], ...] | None = None
    comments: tuple[str, ...] | None = None
    tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_gains()
        self._check_forms()

    def _check_gains(self) -> None:
        if self.gains is None:
            return
        lines, gains = [len(path.latents) for path in self.paths], [len(gains) for gains in self.gains]
        if len(lines) != len(gains):
            raise DataError(f"gains for {len(gains)} traces, but the paths have {len(lines)}: give one for each line")
        for trace, (num_lines, num_gains) in enumerate(zip(lines, gains, strict=True)):
            if num_lines != num_gains:
                raise DataError(
                    f"gains for {num_gains} lines in trace {trace}, but the paths have {num_lines}: give one gain for "
                    "each line"
                )

    def _check_forms(self) -> None:
        for kind, forms in (("comments", self.comments), ("tokens", self.tokens)):
            if forms is not None and len(forms) != len(self.names):
                raise DataError(f"{len(forms)} {kind} for {len(self.names)} latents: give one for each latent")
        for comment in self.comments or ():
            if comment and (not comment.startswith("#") or comment_problem(comment) == "broken"):
                raise DataError(f"the comment {comment!r} must be '#' and text on one line, or empty")

    @property
    def num_latents(self) -> int:
        return len(self.names)

    def marks(self, trace: int, steps: Sequence[str]) -> list[str]:
        """Return the text that each step of a trace is preceded by: its latent at a switch, else nothing.

        A codebook latent is its special token, a rationale latent its comment line with the step's indent.
        """
        path = self.paths[trace]
        marks = []
        for step, latent, switch in zip(steps, path.latents, path.switches, strict=True):
            if not switch:
                marks.append("")
            elif self.comments is not None:
                comment = self.comments[latent]
                marks.append(f"{indent_of(step)}{comment}\n" if comment else "")
            else:
                marks.append(latent_token(latent) if self.tokens is None else self.tokens[latent])
        return marks


def names_by_company(
    traces: Sequence[ExpertTrace], paths: Sequence[LatentPath], num_latents: int
) -> tuple[tuple[str, ...], ...]:
    """Name latents by the prompt words that occur with them: each word names one latent.

    It is the latent with the highest `p(word | latent used) p(latent used | word)`, counted over traces; ties go to the
    lower latent. A latent that no word chooses has no name.
    """
    words = sorted({word for trace in traces for word in prompt_words(trace.prompt)})
    together_WK = np.zeros((len(words), num_latents))
    alone_K = np.full(num_latents, 1e-9)
    index = {word: i for i, word in enumerate(words)}
    for trace, path in zip(traces, paths, strict=True):
        used, named = sorted(set(path.latents)), [index[word] for word in prompt_words(trace.prompt)]
        if named:
            alone_K[used] += 1
            together_WK[np.ix_(named, used)] += 1
    best_W = (together_WK**2 / alone_K).argmax(axis=1) if words else np.zeros(0, dtype=int)
    return tuple(tuple(words[i] for i in np.flatnonzero(best_W == latent)) for latent in range(num_latents))
