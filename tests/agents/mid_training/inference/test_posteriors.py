"""Path posteriors: what they sample and how far they are from the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from ra3gym.abstractions.inference.posterior import LatentChain, posterior, soft_policy, soft_values, viterbi_paths
from ra3gym.abstractions.inference.problem import NO_LATENT, InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.inference.temporal_elbo import temporal_elbo
from ra3gym.agents.mid_training.inference.posteriors import (
    ExactAgent,
    UniformPosterior,
    ViterbiAgent,
    elbo_gap,
    sample_paths,
)
from ra3gym.errors import DataError

LENGTHS = (5, 1, 3, 7)
K = 3


@pytest.fixture
def problem() -> InferenceProblem:
    rng = np.random.default_rng(3)
    emissions = [np.log(rng.dirichlet(np.ones(K), size=length)) for length in LENGTHS]
    return problem_from_chain(LatentChain.under(StickyPrior(0.6, K), emissions))


def test_exact_posterior_has_no_gap_and_is_the_soft_policy(problem: InferenceProblem) -> None:
    rng = np.random.default_rng(0)
    exact = ExactAgent().fit(problem, rng)
    assert elbo_gap(problem, exact, rng) == pytest.approx(0.0, abs=1e-10)
    policy_NKK = soft_policy(problem.chain, soft_values(problem.chain))
    lines = np.arange(len(problem.chain.row_N))
    first = np.isin(lines, problem.chain.offsets)
    for previous in range(K):
        found = np.exp(exact.log_probs(lines, np.where(first, NO_LATENT, previous)))
        np.testing.assert_allclose(found, policy_NKK[:, previous], atol=1e-10)


def test_exact_samples_have_the_marginals(problem: InferenceProblem) -> None:
    rng = np.random.default_rng(0)
    exact = ExactAgent().fit(problem, rng)
    counts = sum(np.eye(K)[sample_paths(problem, exact, rng).latent_N] for _ in range(4000)) / 4000
    np.testing.assert_allclose(counts, posterior(problem.chain).marginal_NK, atol=0.04)


def test_gap_of_uniform_is_what_the_temporal_elbo_says(problem: InferenceProblem) -> None:
    rng = np.random.default_rng(0)
    uniform = UniformPosterior(K)
    expected = 0.0
    for m, length in enumerate(LENGTHS):
        lines = np.arange(problem.chain.offsets[m], problem.chain.offsets[m + 1])
        prior_TKK = np.stack(
            [problem.log_priors(lines, np.where(np.arange(length) == 0, NO_LATENT, previous)) for previous in range(K)],
            axis=1,
        )
        bound = temporal_elbo(problem.chain.log_emission_UK[lines], prior_TKK, np.full((length, K, K), 1.0 / K))
        expected += problem.log_evidence_M[m] - bound.total
    assert elbo_gap(problem, uniform, rng, samples=4000) == pytest.approx(expected / sum(LENGTHS), rel=0.02)


def test_viterbi_path_is_sampled_with_certainty_and_scored(problem: InferenceProblem) -> None:
    rng = np.random.default_rng(0)
    found = sample_paths(problem, ViterbiAgent().fit(problem, rng), rng)
    latent_N, _ = viterbi_paths(problem.chain)
    np.testing.assert_array_equal(found.latent_N, latent_N)
    np.testing.assert_array_equal(found.log_q_M, 0.0)
    first = slice(0, LENGTHS[0])
    lines = np.arange(LENGTHS[0])
    prior_TKK = np.stack(
        [problem.log_priors(lines, np.where(lines == 0, NO_LATENT, previous)) for previous in range(K)], axis=1
    )
    sure_TKK = np.repeat(np.eye(K)[latent_N[first]][:, None], K, axis=1)
    joint = temporal_elbo(problem.chain.log_emission_UK[first], prior_TKK, sure_TKK)
    assert found.log_joint_M[0] == pytest.approx(joint.total)


def test_observations_show_features_the_latent_behind_and_the_position(problem: InferenceProblem) -> None:
    F = problem.feature_NF.shape[1]
    observed = problem.observations(np.array([0, 1, 4]), np.array([NO_LATENT, 2, 0]))
    assert observed.shape == (3, problem.observation_size)
    np.testing.assert_array_equal(observed[:, :F], problem.feature_NF[[0, 1, 4]])
    np.testing.assert_array_equal(observed[:, F : F + K], [[0, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(observed[:, F + K :], [[0, 1 / 5], [1 / 4, 1 / 4], [1, 1]])
    assert not problem.known_ND[:, F : F + K].any()


def test_features_do_not_look_past_a_trace(problem: InferenceProblem) -> None:
    following = slice(K + 1, 3 * (K + 1))
    assert not problem.feature_NF[LENGTHS[0] - 1, following].any()
    assert problem.feature_NF[0, following].all()
    np.testing.assert_array_equal(problem.feature_NF[0, following], problem.feature_NF[[1, 2], : K + 1].ravel())


def test_unfit_features_are_refused(problem: InferenceProblem) -> None:
    with pytest.raises(DataError, match="float32"):
        InferenceProblem(problem.chain, np.zeros((3, 2), dtype=np.float32), problem.trace_ids)
    broken = problem.feature_NF.copy()
    broken[4, 1] = np.nan
    with pytest.raises(DataError, match="line 4"):
        InferenceProblem(problem.chain, broken, problem.trace_ids)
    with pytest.raises(DataError, match="trace ids"):
        InferenceProblem(problem.chain, problem.feature_NF, ("a", "a", "b", "c"))
