"""What a codebook is held to: probabilities that are some, an evidence that no path exceeds.

Shapes: N lines, M traces, P pairs of lines, L line types, W words, K latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ra3gym.abstractions.inference.posterior import log_evidence, posterior, viterbi_paths
from ra3gym.abstractions.latents.codebook import Codebook, latent_chain, viterbi
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.tasks import ExpertTrace

TIGHT = 1e-6
"""How far sums of probabilities may be from 1."""


def check_codebook(codebook: Codebook, traces: Sequence[ExpertTrace]) -> None:
    """Hold a codebook, or anything with its attributes, against the traces that it was learned on, in their order.

    `AssertionError` names what is wrong: shapes that do not fit the corpus, values that are no probabilities,
    distributions that do not sum to 1, a trace without any possible path, a posterior that is none, or a path of higher
    probability than the evidence.
    """
    corpus = encode_traces(traces)
    Y, U, W = len(corpus.pair_line_Y), len(corpus.templates), len(corpus.words)
    K = codebook.num_latents
    shapes = {"emission_YK": (Y, K), "keep_U1": (U + 1,), "word_WK": (W, K)}
    for name, shape in shapes.items():
        table = np.asarray(getattr(codebook, name))
        assert table.shape == shape, f"{name} has shape {table.shape}; these traces make it {shape}"
        assert np.isfinite(table).all(), f"{name} is not finite at {_first(~np.isfinite(table))}"
        wrong = (table < 0) | (table > 1 + TIGHT)
        assert not wrong.any(), f"{name} holds {table[wrong][0]} at {_first(wrong)}, which is no probability"
    total_W = np.asarray(codebook.word_WK).sum(axis=1)
    wrong_W = np.abs(total_W - 1) > TIGHT
    assert not wrong_W.any(), (
        f"p(latent | word) of word {corpus.words[int(wrong_W.argmax())]!r} sums to {total_W[wrong_W][0]:.6f}, not to 1"
    )
    total_UK = np.zeros((U + 1, K))
    np.add.at(total_UK, corpus.pair_previous_Y, codebook.emission_YK)
    wrong_UK = total_UK > 1 + TIGHT
    assert not wrong_UK.any(), (
        f"p(line | previous line, latent) sums to {total_UK.max():.6f}, above 1, over the lines seen behind line type "
        f"{_first(wrong_UK)[0]}"
    )
    recorded = len(codebook.evidence) > 0 and bool(np.isfinite(codebook.evidence).all())
    assert recorded, f"evidence is {codebook.evidence!r}: give one finite number for each iteration, in nats per line"
    _check_inference(codebook, traces)


def _check_inference(codebook: Codebook, traces: Sequence[ExpertTrace]) -> None:
    """The chain that it makes has a posterior, and its best paths fit the traces and the evidence."""
    corpus = encode_traces(traces)
    with np.errstate(divide="ignore"):  # a line may be impossible under some latents
        chain = latent_chain(corpus, codebook)
        evidence_M = log_evidence(chain)
    for m, trace in enumerate(traces):
        assert np.isfinite(evidence_M[m]), (
            f"trace {m} ({trace.task.task_id!r}) is impossible: its log evidence is {evidence_M[m]}"
        )
        assert evidence_M[m] <= TIGHT, (
            f"trace {m} ({trace.task.task_id!r}) has the log evidence {evidence_M[m]:.4f}, above 0"
        )
    latent_N, switch_N = viterbi_paths(chain)
    found = posterior(chain)
    total_N = found.marginal_NK.sum(axis=1)
    assert np.allclose(total_N, 1.0, atol=TIGHT), (
        f"the posterior of line {int(np.abs(total_N - 1).argmax())} does not sum to 1"
    )
    for m, (path, trace) in enumerate(zip(viterbi(corpus, codebook), traces, strict=True)):
        assert len(path.latents) == len(trace.steps), (
            f"the path of trace {m} has {len(path.latents)} latents for {len(trace.steps)} lines"
        )
    joint_M = np.add.reduceat(_path_gains(chain, latent_N, switch_N), corpus.offsets[:-1])
    wrong_M = joint_M > evidence_M + TIGHT * np.maximum(1.0, np.abs(evidence_M))
    assert not wrong_M.any(), (
        f"the best path of trace {int(wrong_M.argmax())} is likelier ({joint_M[wrong_M][0]:.4f} nats) than all paths "
        f"together ({evidence_M[wrong_M][0]:.4f})"
    )


def _path_gains(chain: Any, latent_N: Any, switch_N: Any) -> Any:
    """`log p(line, latent, switch | behind)` of each line along the paths, in nats."""
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_N = chain.fresh_PK[chain.fresh_row_M[trace_N], latent_N]
    first_N = np.isin(np.arange(len(latent_N)), chain.offsets[:-1])
    kept_N = np.where(first_N, 0.0, chain.keep_N)
    with np.errstate(divide="ignore"):
        log_prior_N = np.log(np.where(switch_N, (1.0 - kept_N) * fresh_N, kept_N))
    return chain.log_emission_UK[chain.row_N, latent_N] + log_prior_N


def _first(wrong: Any) -> tuple[int, ...]:
    return tuple(np.argwhere(wrong)[0].tolist())
