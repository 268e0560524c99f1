"""The amortized E-step: its gradient is the bound's, it closes the gap, and EM around it finds what exact EM finds."""

from __future__ import annotations

import numpy as np
import pytest

from ra3gym.abstractions.inference.path_counts import counts_of_paths, switch_probabilities
from ra3gym.abstractions.inference.posterior import LatentChain, posterior, sample_paths
from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.agents.mid_training import make_e_step
from ra3gym.agents.mid_training.e_steps.agent import AgentEStep
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent, _policy_gradient
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, UniformPosterior, ViterbiAgent, elbo_gap
from ra3gym.errors import ConfigError, DataError
from ra3gym.tasks import ExpertTrace

K = 5
SMALL = CodebookConfig(num_latents=8, restarts=1, iterations=4)


@pytest.fixture(scope="module")
def planted() -> InferenceProblem:
    """Traces of a sticky chain whose lines are seen through noise: the best latent now is not the best for later."""
    rng = np.random.default_rng(5)
    emission_UK = np.log(0.6 * np.eye(K)[rng.permutation(np.repeat(np.arange(K), 3))] + 0.4 / K)
    emissions = [emission_UK[rng.integers(3 * K, size=length)] for length in rng.integers(6, 13, size=40)]
    return problem_from_chain(LatentChain.under(StickyPrior(0.7, K), emissions))


def gradient(problem: InferenceProblem, value_BK: np.ndarray, traces: np.ndarray, groups: int, seed: int) -> np.ndarray:
    chain = problem.chain
    lines = int(np.diff(chain.offsets)[traces].sum())
    uniform = np.random.default_rng(seed).random((lines, groups))
    return _policy_gradient(*chain.arrays, traces, value_BK, uniform)


def test_gradient_is_zero_at_the_posterior(planted: InferenceProblem) -> None:
    """At V = the soft values ahead every return equals the value, so that no path has an advantage."""
    traces = np.arange(planted.chain.num_traces)
    lines = np.arange(len(planted.chain.row_N))
    exact = ExactAgent().fit(planted, np.random.default_rng(0))
    # log q = reward + V up to a constant per row, for any latent behind.
    value_NK = exact.log_probs(lines, np.zeros_like(lines)) - planted.rewards(lines, np.zeros_like(lines))
    found = gradient(planted, value_NK, traces, groups=4, seed=0)
    away = gradient(planted, np.zeros_like(value_NK), traces, groups=4, seed=0)
    assert np.abs(found).max() < 1e-6
    assert np.abs(away).max() > 1e-4


def test_gradient_is_that_of_the_bound() -> None:
    """Against finite differences of the exact ELBO of a trace of two lines."""
    rng = np.random.default_rng(1)
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.6, 3), [np.log(rng.dirichlet(np.ones(3), size=2))]))
    value = rng.normal(size=(2, 3))

    def bound(value: np.ndarray) -> float:
        total = 0.0
        for first in range(3):
            steps = [(0, -1, first)]
            for second in range(3):
                path = [*steps, (1, first, second)]
                log_q = gain = 0.0
                for line, previous, chosen in path:
                    rewards = problem.rewards(np.array([line]), np.array([previous]))[0]
                    logits = rewards + value[line]
                    log_q += logits[chosen] - np.log(np.exp(logits).sum())
                    gain += rewards[chosen]
                total += np.exp(log_q) * (gain - log_q)
        return total / 2  # per line

    expected = np.zeros((2, 3))
    for index in np.ndindex(2, 3):
        step = np.zeros((2, 3))
        step[index] = 1e-5
        expected[index] = (bound(value + step) - bound(value - step)) / 2e-5
    found = gradient(problem, value, np.array([0]), groups=200_000, seed=0)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_it_closes_the_gap(planted: InferenceProblem) -> None:
    """90% of uniform's gap within 200 updates of 40 traces x 8 paths, some 580,000 lines walked."""
    rng = np.random.default_rng(0)
    uniform = elbo_gap(planted, UniformPosterior(K), rng, samples=20)
    greedy = elbo_gap(planted, PolicyGradientAgent(updates=0).fit(planted, rng), rng, samples=20)
    learned = elbo_gap(planted, PolicyGradientAgent(updates=200).fit(planted, rng), rng, samples=20)
    assert 0 <= learned < 0.1 * uniform
    assert learned < 0.2 * greedy, "most of what greed leaves is learned"


def test_the_generator_decides_and_a_start_is_gone_on_from(planted: InferenceProblem) -> None:
    agent = PolicyGradientAgent(updates=30)
    lines = np.arange(20)
    first, again, other = (agent.fit(planted, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.log_probs(lines, lines % K), again.log_probs(lines, lines % K))
    assert np.abs(first.log_probs(lines, lines % K) - other.log_probs(lines, lines % K)).max() > 1e-3
    kept = PolicyGradientAgent(updates=0).fit(planted, np.random.default_rng(3), first)
    np.testing.assert_array_equal(kept.log_probs(lines, lines % K), first.log_probs(lines, lines % K))


@pytest.mark.parametrize(
    "options", [{"group_size": 1}, {"learning_rate": 0.0}, {"updates": -1}, {"traces_per_update": 0}]
)
def test_bad_settings(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PolicyGradientAgent(**options)


def test_counts_of_sampled_paths_are_the_posterior(planted: InferenceProblem) -> None:
    rng = np.random.default_rng(0)
    exact = posterior(planted.chain)
    paths = np.stack([sample_paths(planted.chain, rng)[0] for _ in range(2000)])
    bounds = np.tile(exact.log_evidence_M, (2000, 1))
    found = counts_of_paths(planted.chain, paths, bounds)
    np.testing.assert_allclose(found.marginal_NK, exact.marginal_NK, atol=0.06)
    np.testing.assert_allclose(found.switch_N, exact.switch_N, atol=0.06)
    np.testing.assert_allclose(found.fresh_MK, exact.fresh_MK, atol=0.15)
    np.testing.assert_allclose(found.log_evidence_M, exact.log_evidence_M)
    assert (switch_probabilities(planted.chain, paths)[:, planted.chain.offsets[:-1]] == 1).all()
    with pytest.raises(DataError, match="paths of shape"):
        counts_of_paths(planted.chain, paths[:, :-1], bounds)


def test_em_around_the_exact_agent_is_exact_em(traces: list[ExpertTrace]) -> None:
    """Sampled counts differ from expected ones by noise; the codebook's evidence hardly does."""
    exact = ExactEStep(SMALL).infer(traces, np.random.default_rng(0))
    sampled = AgentEStep(ExactAgent(), SMALL, samples=16).infer(traces, np.random.default_rng(0))
    assert sampled.metrics["evidence"] == pytest.approx(exact.metrics["evidence"], abs=0.05)
    assert sampled.metrics["elbo_gap"] == pytest.approx(0.0, abs=1e-9)


def test_em_by_policy_gradient(traces: list[ExpertTrace]) -> None:
    exact = ExactEStep(SMALL).infer(traces, np.random.default_rng(0))
    agent = PolicyGradientAgent(updates=60, traces_per_update=32)
    found = AgentEStep(agent, SMALL).infer(traces, np.random.default_rng(0))
    assert [len(path.latents) for path in found.paths] == [len(trace.steps) for trace in traces]
    assert found.metrics["elbo_gap"] < 0.1
    assert found.metrics["evidence"] == pytest.approx(exact.metrics["evidence"], abs=0.2)
    rate, exact_rate = (sum(sum(p.switches) for p in one.paths) for one in (found, exact))
    assert 0.8 < rate / exact_rate < 1.25, "no collapse into few, long segments"
    again = AgentEStep(agent, SMALL).infer(traces, np.random.default_rng(0))
    assert again.paths == found.paths


def test_hard_em_by_name(traces: list[ExpertTrace]) -> None:
    e_step = make_e_step("viterbi", SMALL)
    assert isinstance(e_step, AgentEStep)
    assert isinstance(e_step.agent, ViterbiAgent)
    assert e_step.config == SMALL
    found = e_step.infer(traces, np.random.default_rng(0))
    assert found.gains is not None
    assert np.mean(np.concatenate(found.gains)) > 0
