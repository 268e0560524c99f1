"""Measures of latents have their textbook values, and the diagnosis names each way in which latents fail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ra3gym.abstractions.inference.posterior import LatentChain, log_evidence
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents.codebook import CodebookConfig, latent_chain, learn_codebook, viterbi
from ra3gym.abstractions.latents.corpus import LineCorpus, encode_traces
from ra3gym.abstractions.latents.diagnosis import (
    LOWEST_LOG_PROBABILITY,
    dead_latents,
    diagnose,
    gain_over_shuffled,
    line_gains,
    mutual_information_lines,
    usage_perplexity,
)
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from ra3gym.tasks.idioms import IdiomsDomain

K = 4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def path(latents: Sequence[int], switches: Sequence[bool] | None = None) -> LatentPath:
    """Every line is a switch by default."""
    return LatentPath(tuple(latents), tuple(switches) if switches is not None else (True,) * len(latents))


def corpus_of(traces: Sequence[Sequence[int]]) -> LineCorpus:
    """Traces of given line types: type i is the line that assigns i."""
    return encode_traces(
        [
            ExpertTrace(CodeTask(str(m), "", "f", FunctionTests((), ())), tuple(f"x = {line}\n" for line in lines))
            for m, lines in enumerate(traces)
        ]
    )


def chain_of(emissions_by_type_LK: np.ndarray, traces: Sequence[Sequence[int]], alpha: float = 0.5) -> LatentChain:
    """Lines of type i are emitted with the log-probabilities of row i."""
    prior = StickyPrior(alpha, emissions_by_type_LK.shape[1])
    return LatentChain.under(prior, [emissions_by_type_LK[list(lines)] for lines in traces])


counts = arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 1000)).filter(lambda c: c.sum() > 0)


@given(counts)
def test_perplexity_is_between_one_and_the_latents_used(counts_K: np.ndarray) -> None:
    assert 1 - 1e-9 <= usage_perplexity(counts_K) <= np.count_nonzero(counts_K) + 1e-9
    assert usage_perplexity(counts_K) == pytest.approx(usage_perplexity(3 * counts_K[::-1]))


def test_usage_by_hand() -> None:
    assert usage_perplexity([5, 5, 5, 0]) == pytest.approx(3)
    assert usage_perplexity([0, 7]) == pytest.approx(1)
    assert usage_perplexity([2, 1, 1]) == pytest.approx(np.exp(1.5 * np.log(2)))
    assert dead_latents([5, 0, 90, 5, 0]).tolist() == [1, 4]
    assert dead_latents([5, 0, 90, 5, 0], share=0.05).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("counts_K", [[], [0, 0], [1, -1], [[1, 2]], [1.0, np.nan]])
def test_usage_refuses_what_is_no_count(counts_K: list[int]) -> None:
    with pytest.raises(DataError, match="usage counts"):
        usage_perplexity(counts_K)


def test_information_of_latents_that_name_the_line() -> None:
    lines = rng().integers(K, size=(200, 5)).tolist()
    corpus = corpus_of(lines)
    perfect = [path(trace) for trace in lines]
    shares = np.bincount(np.ravel(lines), minlength=K) / 1000
    assert mutual_information_lines(corpus, perfect, rng()) == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.01)
    halves = [path([line // 2 for line in trace]) for trace in lines]
    assert mutual_information_lines(corpus, halves, rng()) == pytest.approx(np.log(2), abs=0.01)


def test_information_of_meaningless_latents_is_zero_however_few_the_lines() -> None:
    found = []
    for seed in range(20):
        generator = rng(seed)
        lines = generator.integers(30, size=(20, 6)).tolist()
        held = [path(np.repeat(generator.integers(20, size=3), 2).tolist(), [True, False] * 3) for _ in lines]
        found.append(mutual_information_lines(corpus_of(lines), held, generator))
    # The plug-in estimate alone is above 1 nat here: 120 lines for 600 pairs.
    assert abs(np.mean(found)) < 0.03
    assert max(found) < 0.3


def test_gains_by_hand() -> None:
    emission_LK = np.log([[0.5, 0.25], [0.1, 0.7]])
    traces = [[0, 1], [1]]
    gains = line_gains(chain_of(emission_LK, traces), [path([0, 1]), path([0])])
    expected = [[np.log(0.5 / 0.375), np.log(0.7 / 0.4)], [np.log(0.1 / 0.4)]]
    assert [len(one) for one in gains] == [2, 1]
    for one, other in zip(gains, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 10_000))
def test_gains_of_one_line_traces_are_over_the_evidence(seed: int) -> None:
    """Without neighbors the marginal is the evidence; under a uniform prior no latent is worth more than log K."""
    generator = rng(seed)
    emission_LK = np.log(generator.dirichlet(np.ones(K), size=6))
    traces = [[line] for line in range(6)]
    chain = chain_of(emission_LK, traces)
    latents = generator.integers(K, size=6)
    gains = np.ravel(line_gains(chain, [path([z]) for z in latents.tolist()]))
    np.testing.assert_allclose(gains, emission_LK[np.arange(6), latents] - log_evidence(chain), atol=1e-12)
    assert gains.max() <= np.log(K) + 1e-12


def test_impossible_lines_have_finite_gains() -> None:
    emission_LK = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    traces = [[0, 1]] * 4
    chain = chain_of(emission_LK, traces)
    right, wrong = [path([0, 1])] * 4, [path([1, 0])] * 4
    assert np.ravel(line_gains(chain, right)) == pytest.approx(np.log(2))
    assert np.ravel(line_gains(chain, wrong)) == pytest.approx(LOWEST_LOG_PROBABILITY + np.log(2))
    assert 0 < gain_over_shuffled(chain, right, rng()) < -LOWEST_LOG_PROBABILITY


def test_gain_over_shuffled_is_the_expected_loss() -> None:
    """Four latents alike: a shuffled one is wrong three times out of four, and then the line costs log 7 more."""
    emission_LK = np.log(np.full((K, K), 0.1) + 0.6 * np.eye(K))
    lines = [[line] for line in range(K)] * 250
    chain = chain_of(emission_LK, lines)
    assert gain_over_shuffled(chain, [path(line) for line in lines], rng()) == pytest.approx(0.75 * np.log(7), rel=0.03)
    meaningless = [path(rng(m).integers(K, size=1).tolist()) for m in range(len(lines))]
    assert gain_over_shuffled(chain, meaningless, rng()) == pytest.approx(0.0, abs=0.1)


@pytest.fixture(scope="module")
def learned() -> tuple[LineCorpus, list[LatentPath], LatentChain, int]:
    """A codebook on documented programs of the embedded domain."""
    domain = IdiomsDomain(length=3, difficulty="easy", documented=1.0, num_compositions=60, num_held_out=1)
    corpus = encode_traces([trace.without_planted() for trace in domain.traces(300)])
    codebook = learn_codebook(corpus, CodebookConfig(num_latents=16, restarts=2, iterations=10), rng())
    return corpus, viterbi(corpus, codebook), latent_chain(corpus, codebook), 16


Learned = tuple[LineCorpus, list[LatentPath], LatentChain, int]


def test_a_learned_codebook_is_healthy(learned: Learned) -> None:
    corpus, paths, chain, num_latents = learned
    found = diagnose(corpus, paths, num_latents, rng(), chain=chain)
    assert found.healthy
    assert found.text.startswith("The latents are used and informative")
    assert found.information > 0.5
    assert found.gain is not None
    assert found.gain > 0.3
    assert 4 < found.perplexity <= num_latents - len(found.dead)
    assert found.mean_duration == pytest.approx(
        len(corpus.line_N) / (corpus.num_traces + found.switch_rate * (len(corpus.line_N) - corpus.num_traces))
    )
    assert np.mean([gain for gains in line_gains(chain, paths) for gain in gains]) > 0.3
    assert diagnose(corpus, paths, num_latents, rng(), chain=chain) == found
    assert diagnose(corpus, paths, num_latents, rng()).healthy


def relabeled(paths: Sequence[LatentPath], generator: np.random.Generator) -> list[LatentPath]:
    latents = iter(generator.permutation([z for one in paths for z in one.segment_latents]).tolist())
    changed = []
    for one in paths:
        new: list[int] = []
        for switch in one.switches:
            new.append(next(latents) if switch else new[-1])
        changed.append(LatentPath(tuple(new), one.switches))
    return changed


def test_ignored_latents_are_told(learned: Learned) -> None:
    corpus, paths, chain, num_latents = learned
    shuffled = relabeled(paths, rng(1))
    for scored in (chain, None):
        found = diagnose(corpus, shuffled, num_latents, rng(), chain=scored)
        assert (found.ignored, found.collapsed, found.never_switched) == (True, False, False)
        assert found.text.startswith("The latents are ignored: I(z; line) is")
        assert "try stronger back-off" in found.text


def test_latents_that_repeat_the_line_before_are_ignored_too(learned: Learned) -> None:
    """Emissions that do not look at the latent: no gain, however much the labels tell about the line types."""
    corpus, paths, chain, num_latents = learned
    blind = LatentChain(
        np.repeat(chain.log_emission_UK.mean(axis=1, keepdims=True), num_latents, axis=1),
        chain.row_N,
        chain.keep_N,
        chain.fresh_PK,
        chain.fresh_row_M,
        chain.offsets,
    )
    found = diagnose(corpus, paths, num_latents, rng(), chain=blind)
    assert found.information > 0.5
    assert found.gain == pytest.approx(0.0, abs=1e-12)
    assert found.ignored


def test_collapse_and_no_switch_are_told(learned: Learned) -> None:
    corpus, paths, chain, num_latents = learned
    one = [LatentPath((3,) * len(p.latents), p.switches) for p in paths]
    found = diagnose(corpus, one, num_latents, rng(), chain=chain)
    assert found.collapsed
    assert not found.healthy
    assert found.text.startswith("The latents have collapsed: their usage is worth 1.00 of 16 latents")
    assert len(found.dead) == 15

    whole = [LatentPath((p.latents[0],) * len(p.latents), (True, *(False,) * (len(p.latents) - 1))) for p in paths]
    found = diagnose(corpus, whole, num_latents, rng(), chain=chain)
    assert (found.never_switched, found.switch_rate) == (True, 0.0)
    assert found.text.startswith("Latents are never switched: only 0.0%")


def test_one_line_traces_may_not_switch() -> None:
    lines = [[0], [1]] * 50
    found = diagnose(corpus_of(lines), [path(line) for line in lines], 2, rng())
    assert np.isnan(found.switch_rate)
    assert found.healthy


def test_what_does_not_fit_is_refused() -> None:
    corpus, emission_LK = corpus_of([[0, 1], [1]]), np.zeros((2, 2))
    chain = chain_of(emission_LK, [[0, 1], [1]])
    for measure in (
        lambda paths: mutual_information_lines(corpus, paths, rng()),
        lambda paths: gain_over_shuffled(chain, paths, rng()),
        lambda paths: line_gains(chain, paths),
        lambda paths: diagnose(corpus, paths, 2, rng()),
    ):
        with pytest.raises(DataError, match="path of trace 1 has 2 lines, the trace has 1"):
            measure([path([0, 1]), path([1, 1])])
        with pytest.raises(DataError, match="1 paths for 2 traces"):
            measure([path([0, 1])])
    with pytest.raises(DataError, match="uses latent 2, but there are 2"):
        diagnose(corpus, [path([0, 2]), path([1])], 2, rng())
    with pytest.raises(DataError, match="uses latent 2, but the chain has 2"):
        line_gains(chain, [path([0, 2]), path([1])])
    with pytest.raises(ConfigError, match="shuffles=0"):
        gain_over_shuffled(chain, [path([0, 1]), path([1])], rng(), shuffles=0)
    with pytest.raises(ConfigError, match="shuffles=0"):
        mutual_information_lines(corpus, [path([0, 1]), path([1])], rng(), shuffles=0)
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        dead_latents([1, 2], share=1.5)


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "inspection.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.startswith("The latents are used and informative about the lines")
