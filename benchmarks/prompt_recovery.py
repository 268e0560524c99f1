"""Choose the codebook's settings without planted labels: hide prompts, infer latents and count the recovered words.

A fifth of the documented traces lose their prompt. The codebook learns from the rest and infers the latents of all
traces; the hidden prompts are then written from the latents. Precision and recall count words, where the names of a
latent share one count: with two synonyms for every idiom, the maximum is 0.5. A codebook that merges intents loses
precision, one that misses switches loses recall.

    python benchmarks/prompt_recovery.py --seeds 20 21
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ra3gym.abstractions.latents.codebook import CodebookConfig, learn_codebook, viterbi, words_by_latent
from ra3gym.abstractions.latents.corpus import encode_traces, prompt_words
from ra3gym.experiments.studies.config import DomainConfig
from ra3gym.tasks import ExpertTrace

SETTINGS: dict[str, CodebookConfig] = {
    "default": CodebookConfig(),
    "backoff=2": CodebookConfig(backoff=2.0),
    "backoff=50": CodebookConfig(backoff=50.0),
    "num_latents=24": CodebookConfig(num_latents=24),
    "num_latents=32": CodebookConfig(num_latents=32),
    "undocumented_weight=0.1": CodebookConfig(undocumented_weight=0.1),
    "undocumented_weight=1": CodebookConfig(undocumented_weight=1.0),
    "window=1": CodebookConfig(window=1),
    "iterations=5": CodebookConfig(iterations=5),
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    seeds: tuple[int, ...] = (20, 21)
    """Domains to measure on; use tuning seeds, not those of a study."""
    restarts: int = 3
    """EM restarts of each setting."""


def without_prompt(trace: ExpertTrace) -> ExpertTrace:
    """Return the trace without the comment lines of its prompt."""
    lines = trace.prompt.splitlines(keepends=True)
    prompt = "".join(line for line in lines if not line.startswith("#"))
    return replace(trace, task=replace(trace.task, prompt=prompt))


def recovery(traces: Sequence[ExpertTrace], config: CodebookConfig, seed: int) -> tuple[float, float]:
    """Return precision and recall of the words of hidden prompts."""
    documented = [index for index, trace in enumerate(traces) if prompt_words(trace.prompt)]
    hidden = set(documented[::5])
    shown = [without_prompt(trace) if index in hidden else trace for index, trace in enumerate(traces)]
    corpus = encode_traces(shown)
    codebook = learn_codebook(corpus, config, np.random.default_rng(seed))
    names, paths = words_by_latent(corpus, codebook.word_WK), viterbi(corpus, codebook)
    recovered = written = wanted = 0.0
    for index in hidden:
        want = Counter(prompt_words(traces[index].prompt))
        got: dict[str, float] = defaultdict(float)
        for latent in paths[index].segment_latents:
            for word in names[latent]:
                got[word] += 1.0 / len(names[latent])
        recovered += sum(min(got[word], count) for word, count in want.items())
        written += sum(got.values())
        wanted += sum(want.values())
    return recovered / max(written, 1e-9), recovered / wanted


def main(options: Options) -> None:
    """Measure every setting on every seed and print a table."""
    table = Table(title="words of hidden prompts recovered (the maximum is 0.5)")
    for column in ("setting", *(f"seed {seed}: precision, recall" for seed in options.seeds)):
        table.add_column(column)
    for name, config in SETTINGS.items():
        cells = []
        for seed in options.seeds:
            domain = DomainConfig()
            traces = [trace.without_planted() for trace in domain.for_seed(seed).traces(domain.num_traces)]
            precision, recall = recovery(traces, replace(config, restarts=options.restarts), seed=0)
            cells.append(f"{precision:.3f}, {recall:.3f}")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
