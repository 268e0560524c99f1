"""What a codebook must satisfy: its tables hold probabilities, and no path is more likely than the evidence.

Shape letters: see CONTRIBUTING.md (N lines, M traces, U distinct lines, Y pairs of lines, W words, K latents).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ra3gym.abstractions.inference.posterior import LatentChain, log_evidence, posterior, viterbi_paths
from ra3gym.abstractions.latents.codebook import Codebook, latent_chain, viterbi
from ra3gym.abstractions.latents.corpus import LineCorpus, encode_traces
from ra3gym.tasks import ExpertTrace

TIGHT = 1e-6
"""How far sums of probabilities may be from 1."""


def check_codebook(codebook: Codebook, traces: Sequence[ExpertTrace]) -> None:
    """Check a codebook, or any object with its attributes, against the traces that it was learned on, in their order.

    Raises:
        AssertionError: tables whose shapes do not fit the traces, values that are not probabilities, distributions that
            do not sum to 1, a trace that is impossible, or a path that is more likely than the evidence. The message
            names the table and the entry, or the trace.
    """
    corpus = encode_traces(traces)
    _check_tables(codebook, corpus)
    recorded = len(codebook.evidence) > 0 and bool(np.isfinite(codebook.evidence).all())
    assert recorded, f"evidence is {codebook.evidence!r}: give one finite number for each iteration, in nats per line"
    with np.errstate(divide="ignore"):  # a line may be impossible under some latents
        chain = latent_chain(corpus, codebook)
    _check_inference(chain, traces)
    for m, (path, trace) in enumerate(zip(viterbi(corpus, codebook), traces, strict=True)):
        assert len(path.latents) == len(trace.steps), (
            f"the path of trace {m} has {len(path.latents)} latents for {len(trace.steps)} lines"
        )


def _check_tables(codebook: Codebook, corpus: LineCorpus) -> None:
    """Check that the tables have the corpus's shapes and hold distributions."""
    num_pairs, num_lines, num_words = len(corpus.pair_line_Y), len(corpus.templates), len(corpus.words)
    K = codebook.num_latents
    for name, shape in {"emission_YK": (num_pairs, K), "keep_U1": (num_lines + 1,), "word_WK": (num_words, K)}.items():
        table = np.asarray(getattr(codebook, name))
        assert table.shape == shape, f"{name} has shape {table.shape}; these traces need {shape}"
        assert np.isfinite(table).all(), f"{name} is not finite at {_first_index(~np.isfinite(table))}"
        wrong = (table < 0) | (table > 1 + TIGHT)
        assert not wrong.any(), f"{name} holds {table[wrong][0]} at {_first_index(wrong)}, which is not a probability"
    total_W = np.asarray(codebook.word_WK).sum(axis=1)
    wrong_W = np.abs(total_W - 1) > TIGHT
    assert not wrong_W.any(), (
        f"p(latent | word) of word {corpus.words[int(wrong_W.argmax())]!r} sums to {total_W[wrong_W][0]:.6f}, not to 1"
    )
    # The last row of the sums is for first lines, which have no previous line.
    total_UK = np.zeros((num_lines + 1, K))
    np.add.at(total_UK, corpus.pair_previous_Y, codebook.emission_YK)
    wrong_UK = total_UK > 1 + TIGHT
    assert not wrong_UK.any(), (
        f"p(line | previous line, latent) sums to {total_UK.max():.6f}, above 1, over the lines that follow line type "
        f"{_first_index(wrong_UK)[0]}"
    )


def _check_inference(chain: LatentChain, traces: Sequence[ExpertTrace]) -> None:
    """Check that every trace is possible, posteriors sum to 1, and no best path exceeds the evidence."""
    evidence_M = log_evidence(chain)
    for m, trace in enumerate(traces):
        name = f"trace {m} ({trace.task.task_id!r})"
        assert np.isfinite(evidence_M[m]), f"{name} is impossible: its log evidence is {evidence_M[m]}"
        assert evidence_M[m] <= TIGHT, f"{name} has the log evidence {evidence_M[m]:.4f}, above 0"
    total_N = posterior(chain).marginal_NK.sum(axis=1)
    assert np.allclose(total_N, 1.0, atol=TIGHT), (
        f"the posterior of line {int(np.abs(total_N - 1).argmax())} does not sum to 1"
    )
    joint_M = np.add.reduceat(_log_joint(chain, *viterbi_paths(chain)), chain.offsets[:-1])
    wrong_M = joint_M > evidence_M + TIGHT * np.maximum(1.0, np.abs(evidence_M))
    assert not wrong_M.any(), (
        f"the best path of trace {int(wrong_M.argmax())} has log probability {joint_M[wrong_M][0]:.4f}, more than all "
        f"paths together ({evidence_M[wrong_M][0]:.4f})"
    )


def _log_joint(chain: LatentChain, latent_N: Any, switch_N: Any) -> Any:
    """Return `log p(line, latent, switch | previous latent)` of each line along the paths, in nats."""
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_N = chain.fresh_PK[chain.fresh_row_M[trace_N], latent_N]
    first_N = np.isin(np.arange(len(latent_N)), chain.offsets[:-1])
    keep_N = np.where(first_N, 0.0, chain.keep_N)
    with np.errstate(divide="ignore"):
        log_prior_N = np.log(np.where(switch_N, (1.0 - keep_N) * fresh_N, keep_N))
    return chain.log_emission_UK[chain.row_N, latent_N] + log_prior_N


def _first_index(wrong: Any) -> tuple[int, ...]:
    return tuple(np.argwhere(wrong)[0].tolist())
