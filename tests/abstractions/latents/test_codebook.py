"""EM raises the evidence, finds planted intents from documented traces, and follows its random generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ra3gym.abstractions.latents.codebook import Codebook, CodebookConfig, learn_codebook, viterbi, words_by_latent
from ra3gym.abstractions.latents.corpus import LineCorpus, encode_traces
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import LABELS, IdiomsDomain
from ra3gym.tasks.idioms.catalogue import IDIOMS

CONFIG = CodebookConfig(num_latents=16, restarts=2, iterations=10)
WORDS = {word: name for name, idiom in IDIOMS.items() for word in idiom.words}


@pytest.fixture(scope="module")
def traces() -> list[ExpertTrace]:
    """Documented programs of three idioms on lists, with their planted labels."""
    domain = IdiomsDomain(length=3, difficulty="easy", documented=1.0, num_compositions=60, num_held_out=1)
    return domain.traces(300)


@pytest.fixture(scope="module")
def corpus(traces: list[ExpertTrace]) -> LineCorpus:
    return encode_traces([trace.without_planted() for trace in traces])


@pytest.fixture(scope="module")
def codebook(corpus: LineCorpus) -> Codebook:
    return learn_codebook(corpus, CONFIG, np.random.default_rng(0))


def learn(corpus: LineCorpus, seed: int = 0, **options: Any) -> Codebook:
    return learn_codebook(corpus, replace(CONFIG, **options), np.random.default_rng(seed))


def undocumented(trace: ExpertTrace) -> ExpertTrace:
    return replace(trace, task=replace(trace.task, prompt=trace.prompt.splitlines(keepends=True)[-1]))


def mutual_information(x: Sequence[int], y: Sequence[int]) -> float:
    """Normalized by the geometric mean of the entropies."""
    joint = np.zeros((max(x) + 1, max(y) + 1))
    np.add.at(joint, (np.array(x), np.array(y)), 1 / len(x))
    alone = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / alone[seen])).sum()
    entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(0), joint.sum(1))]
    return float(information / np.sqrt(entropies[0] * entropies[1]))


def test_planted_intents_are_found(corpus: LineCorpus, codebook: Codebook, traces: list[ExpertTrace]) -> None:
    planted = [label for trace in traces for label in trace.planted or ()]
    paths = viterbi(corpus, codebook)
    assert [len(path.latents) for path in paths] == [len(trace.steps) for trace in traces]
    found = [latent for path in paths for latent in path.latents]
    assert mutual_information(found, planted) > 0.8
    by_chance = np.random.default_rng(0).integers(CONFIG.num_latents, size=len(planted)).tolist()
    assert mutual_information(by_chance, planted) < 0.05
    assert mutual_information(corpus.line_N.tolist(), planted) < mutual_information(found, planted)


def test_segments_are_about_as_long_as_planted(
    corpus: LineCorpus, codebook: Codebook, traces: list[ExpertTrace]
) -> None:
    segments = sum(len(path.segment_latents) for path in viterbi(corpus, codebook))
    planted = sum(1 + sum(a != b for a, b in zip(t.planted, t.planted[1:], strict=False)) for t in traces if t.planted)
    assert 0.75 < segments / planted < 1.25


def test_latents_are_named_by_synonyms(corpus: LineCorpus, codebook: Codebook) -> None:
    named = [words for words in words_by_latent(corpus, codebook.word_WK) if words]
    assert {word for words in named for word in words} == set(corpus.words[2:])
    alone = [words for words in named if len({WORDS[word] for word in words}) == 1]
    assert len(alone) >= 0.7 * len(named)
    assert LABELS["return"] not in {LABELS[WORDS[word]] for words in named for word in words}


def test_evidence_rises(corpus: LineCorpus, codebook: Codebook) -> None:
    """The back-off smooths what EM maximizes, so that a step may lose a little; the whole climb is steep."""
    evidence = np.array(learn(corpus, iterations=25, restarts=1).evidence)
    assert len(evidence) == 25
    assert np.diff(evidence).min() > -1e-3
    assert evidence[-1] > evidence[0] + 0.5
    assert evidence[-1] < 0


def test_dead_latents_are_revived_and_annealing_ends(corpus: LineCorpus) -> None:
    def used(codebook: Codebook) -> int:
        counts = np.bincount([z for path in viterbi(corpus, codebook) for z in path.latents], minlength=64)
        return int((counts > 0.05 * counts.mean()).sum())

    options = {"num_latents": 64, "restarts": 1, "iterations": 12}
    plain, revived = learn(corpus, **options), learn(corpus, revive_below=0.2, **options)
    assert used(plain) < used(revived)
    np.testing.assert_allclose(revived.word_WK.sum(axis=1), 1)
    annealed = learn(corpus, anneal=0.3, **options)
    assert annealed.evidence[0] > plain.evidence[0], "likelihoods to a power below 1 are higher"
    assert annealed.evidence[-1] == pytest.approx(plain.evidence[-1], abs=0.3)


def test_restarts_keep_the_best(corpus: LineCorpus) -> None:
    evidence = [learn(corpus, restarts=restarts, iterations=4).evidence[-1] for restarts in (1, 2, 4)]
    assert evidence == sorted(evidence)
    assert evidence[0] < evidence[-1]


def test_tables_are_distributions(corpus: LineCorpus, codebook: Codebook) -> None:
    assert codebook.num_latents == 16
    np.testing.assert_allclose(codebook.word_WK.sum(axis=1), 1)
    assert codebook.word_WK.shape == (len(corpus.words), 16)
    assert codebook.keep_U1.shape == (len(corpus.templates) + 1,)
    assert ((codebook.keep_U1 > 0) & (codebook.keep_U1 < 1)).all()
    assert (codebook.emission_YK > 0).all()
    total_UK = np.zeros((len(corpus.templates) + 1, 16))
    np.add.at(total_UK, corpus.pair_previous_Y, codebook.emission_YK)
    assert (total_UK <= 1 + 1e-9).all(), "what is missing to 1 is the back-off's share for pairs never seen"


def same(one: Codebook, other: Codebook) -> bool:
    tables = ("emission_YK", "keep_U1", "word_WK")
    return one.evidence == other.evidence and all(
        np.array_equal(getattr(one, table), getattr(other, table)) for table in tables
    )


def test_the_generator_decides(corpus: LineCorpus, codebook: Codebook) -> None:
    assert same(codebook, learn(corpus, seed=0))
    assert not same(codebook, learn(corpus, seed=1))


def test_undocumented_traces_of_weight_0_teach_nothing(traces: list[ExpertTrace]) -> None:
    documented, rest = traces[:150], [undocumented(trace) for trace in traces[:150]]
    alone, both = encode_traces(documented), encode_traces([*documented, *rest])
    assert both.documented_M.sum() == 150
    without, beside = learn(alone), learn(both)
    np.testing.assert_allclose(beside.emission_YK, without.emission_YK, rtol=1e-9)
    np.testing.assert_allclose(beside.keep_U1, without.keep_U1, rtol=1e-9)
    np.testing.assert_allclose(beside.word_WK, without.word_WK, rtol=1e-9)
    np.testing.assert_allclose(beside.evidence, without.evidence, rtol=1e-9)
    weighed = learn(both, undocumented_weight=0.5)
    assert np.abs(weighed.emission_YK - without.emission_YK).max() > 1e-3


def test_intents_carry_over_to_undocumented_traces(traces: list[ExpertTrace]) -> None:
    rest = [undocumented(trace) for trace in traces[150:]]
    corpus = encode_traces([*traces[:150], *rest])
    found = [latent for path in viterbi(corpus, learn(corpus))[150:] for latent in path.latents]
    assert mutual_information(found, [label for trace in traces[150:] for label in trace.planted or ()]) > 0.6


def test_no_documented_trace_at_all(traces: list[ExpertTrace]) -> None:
    corpus = encode_traces([undocumented(trace) for trace in traces[:80]])
    assert not corpus.documented_M.any()
    codebook = learn(corpus)
    assert codebook.evidence[-1] > codebook.evidence[0]
    assert [len(path.latents) for path in viterbi(corpus, codebook)] == np.diff(corpus.offsets).tolist()
    assert words_by_latent(corpus, codebook.word_WK) == [()] * 16


@pytest.mark.filterwarnings("error")
def test_more_latents_than_lines(traces: list[ExpertTrace]) -> None:
    corpus = encode_traces(traces[:2])
    codebook = learn(corpus, num_latents=64)
    assert np.isfinite(codebook.emission_YK).all()
    assert np.isfinite(codebook.evidence).all()
    assert len(viterbi(corpus, codebook)) == 2


def test_words_by_latent_by_hand() -> None:
    corpus = replace(
        encode_traces(
            IdiomsDomain(length=1, difficulty="easy", documented=0.0, num_compositions=1, num_held_out=1).traces(1)
        ),
        words=("<background>", "<no prompt>", "up", "rise", "down"),
    )
    word_WK = np.array([[0.3, 0, 0.7], [0, 0, 1.0], [0.6, 0.3, 0.1], [0.9, 0.1, 0], [0.2, 0.2, 0.6]])
    codebook = Codebook(np.ones((1, 3)), np.ones(1), word_WK, (0.0,))
    assert words_by_latent(corpus, codebook.word_WK) == [("rise", "up"), ("up", "down"), ()]  # background: 2


def test_a_path_starts_with_a_switch() -> None:
    path = LatentPath((4, 4, 2, 2, 2), (True, False, True, True, False))
    assert path.segment_latents == (4, 2, 2)
    for latents, switches in [((), ()), ((1,), (False,)), ((1, 2), (True,))]:
        with pytest.raises(ValueError, match="starts with a switch"):
            LatentPath(latents, switches)


@pytest.mark.parametrize(
    "options",
    [
        {"num_latents": 1},
        {"restarts": 0},
        {"iterations": 0},
        {"backoff": 0.0},
        {"gate_prior": 0.0},
        {"undocumented_weight": -0.1},
        {"undocumented_weight": 1.1},
        {"window": -1},
        {"decay": 1.5},
    ],
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        CodebookConfig(**options)
