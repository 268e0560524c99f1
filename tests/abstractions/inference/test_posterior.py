"""Exact inference against enumeration of every path, and the identities that tie it to the ELBO and to soft RL."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp

from ra3gym.abstractions.inference.posterior import (
    LatentChain,
    log_evidence,
    posterior,
    sample_paths,
    soft_policy,
    soft_values,
    viterbi_paths,
)
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.inference.temporal_elbo import temporal_elbo
from ra3gym.abstractions.inference.torch_evidence import sticky_log_evidence
from ra3gym.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]


@st.composite
def chains(draw: st.DrawFn, impossible: bool = True) -> LatentChain:
    """Up to three traces of up to six lines, with shared rows, gates and fresh distributions of their own."""
    K, U, P = draw(st.integers(2, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    lengths = draw(st.lists(st.integers(1, 6 if K < 4 else 5), min_size=1, max_size=3))
    N, M = sum(lengths), len(lengths)
    log_emission_UK = draw(arrays(np.float64, (U, K), elements=st.floats(-8.0, 0.0)))
    if impossible and draw(st.booleans()):
        log_emission_UK[draw(st.integers(0, U - 1)), draw(st.integers(0, K - 2))] = -np.inf
    fresh_PK = draw(arrays(np.float64, (P, K), elements=st.floats(0.02, 1.0)))
    return LatentChain(
        log_emission_UK=log_emission_UK,
        row_N=draw(arrays(np.int64, N, elements=st.integers(0, U - 1))),
        keep_N=draw(arrays(np.float64, N, elements=st.floats(0.0, 0.99))),
        fresh_PK=fresh_PK / fresh_PK.sum(axis=1, keepdims=True),
        fresh_row_M=draw(arrays(np.int64, M, elements=st.integers(0, P - 1))),
        offsets=np.cumsum([0, *lengths]),
    )


@dataclass
class Dense:
    """One trace of a chain, written out: emissions, the prior's transitions (t, before, after), and its lines."""

    log_emission_TK: FloatArray
    prior_TKK: FloatArray
    lines: slice

    @property
    def log_prior_TKK(self) -> FloatArray:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.prior_TKK))

    def paths(self) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Every path of latents, and its joint probability with the lines."""
        T, K = self.log_emission_TK.shape
        paths = np.array(list(itertools.product(range(K), repeat=T)))
        before = np.concatenate([np.zeros((len(paths), 1), dtype=int), paths[:, :-1]], axis=1)
        t = np.arange(T)
        return paths, np.prod(self.prior_TKK[t, before, paths] * np.exp(self.log_emission_TK[t, paths]), axis=1)


def dense(chain: LatentChain) -> list[Dense]:
    traces = []
    for m in range(chain.num_traces):
        lines = slice(int(chain.offsets[m]), int(chain.offsets[m + 1]))
        keep_T = chain.keep_N[lines].copy()
        keep_T[0] = 0.0
        fresh_K = chain.fresh_PK[chain.fresh_row_M[m]]
        prior_TKK = keep_T[:, None, None] * np.eye(chain.num_latents) + (1 - keep_T)[:, None, None] * fresh_K
        traces.append(Dense(chain.log_emission_UK[chain.row_N[lines]], prior_TKK, lines))
    return traces


@settings(max_examples=80, deadline=None)
@given(chains())
def test_forward_backward_is_enumeration(chain: LatentChain) -> None:
    found = posterior(chain)
    np.testing.assert_array_equal(found.log_evidence_M, log_evidence(chain))
    assert (found.switch_N[chain.offsets[:-1]] == 1.0).all()
    np.testing.assert_allclose(found.fresh_MK.sum(), found.switch_N.sum(), atol=1e-10)
    for m, trace in enumerate(dense(chain)):
        paths, joint = trace.paths()
        assert found.log_evidence_M[m] == pytest.approx(np.log(joint.sum()), abs=1e-10)
        share = joint / joint.sum()
        for k in range(chain.num_latents):
            np.testing.assert_allclose(found.marginal_NK[trace.lines, k], share @ (paths == k), atol=1e-10)
        switched, drawn_K = np.ones(paths.shape), np.zeros(chain.num_latents)
        for t in range(1, paths.shape[1]):
            keep, fresh = chain.keep_N[trace.lines][t], chain.fresh_PK[chain.fresh_row_M[m], paths[:, t]]
            stayed = paths[:, t] == paths[:, t - 1]
            switched[:, t] = np.where(stayed, (1 - keep) * fresh / (keep * stayed + (1 - keep) * fresh), 1.0)
        np.testing.assert_allclose(found.switch_N[trace.lines], share @ switched, atol=1e-10)
        for k in range(chain.num_latents):
            drawn_K[k] = share @ (switched * (paths == k)).sum(axis=1)
        np.testing.assert_allclose(found.fresh_MK[m], drawn_K, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_viterbi_is_the_best_of_all_paths(chain: LatentChain) -> None:
    latent_N, switch_N = viterbi_paths(chain)

    def log_joint(latents: npt.NDArray[np.int64], switches: npt.NDArray[np.bool_], m: int) -> float:
        lines = slice(int(chain.offsets[m]), int(chain.offsets[m + 1]))
        keep_T, fresh_K = chain.keep_N[lines], chain.fresh_PK[chain.fresh_row_M[m]]
        total = np.log(fresh_K[latents[0]])
        with np.errstate(divide="ignore"):
            for t in range(1, len(latents)):
                fresh = np.log(1 - keep_T[t]) + np.log(fresh_K[latents[t]])
                total += fresh if switches[t] else np.log(keep_T[t])
        return float(total + chain.log_emission_UK[chain.row_N[lines], latents].sum())

    for m, trace in enumerate(dense(chain)):
        latents, switches = latent_N[trace.lines], switch_N[trace.lines]
        assert switches[0]
        assert (switches | (latents == np.roll(latents, 1))).all()
        T, K = trace.log_emission_TK.shape
        best = max(
            log_joint(np.array(path), np.array([True, *events]), m)
            for path in itertools.product(range(K), repeat=T)
            for events in itertools.product([True, False], repeat=T - 1)
            if all(event or path[t] == path[t + 1] for t, event in enumerate(events))
        )
        assert log_joint(latents, switches, m) == pytest.approx(best, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_the_soft_optimal_policy_is_the_posterior(chain: LatentChain) -> None:
    """And its value is the evidence: maximum-entropy RL at temperature 1."""
    values_NK = soft_values(chain)
    policy_NKK = soft_policy(chain, values_NK)
    found = posterior(chain)
    for m, trace in enumerate(dense(chain)):
        np.testing.assert_allclose(values_NK[trace.lines.start], found.log_evidence_M[m], atol=1e-10)
        occupancy_K = np.eye(chain.num_latents)[0]
        for n in range(trace.lines.start, trace.lines.stop):
            possible = np.isfinite(values_NK[n])
            np.testing.assert_allclose(policy_NKK[n][possible].sum(axis=1), 1.0, atol=1e-10)
            occupancy_K = occupancy_K @ np.nan_to_num(policy_NKK[n])
            np.testing.assert_allclose(occupancy_K, found.marginal_NK[n], atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_plain_soft_value_iteration_finds_the_posterior(chain: LatentChain) -> None:
    """Bellman sweeps over all states (line, latent behind) until nothing changes, with nothing borrowed from above."""
    found = posterior(chain)
    for m, trace in enumerate(dense(chain)):
        T, K = trace.log_emission_TK.shape
        reward_TKK = trace.log_prior_TKK + trace.log_emission_TK[:, None, :]
        value_TK, sweeps = np.zeros((T + 1, K)), 0  # row T: the trace is over
        while True:
            updated_TK = np.zeros_like(value_TK)
            updated_TK[:-1] = logsumexp(reward_TKK + value_TK[1:, None, :], axis=2)
            sweeps += 1
            if np.array_equal(updated_TK, value_TK):
                break
            value_TK = updated_TK
        assert sweeps <= T + 1
        assert value_TK[0, 0] == pytest.approx(found.log_evidence_M[m], abs=1e-10)
        with np.errstate(invalid="ignore"):  # states that nothing can follow
            log_policy_TKK = reward_TKK + value_TK[1:, None, :] - value_TK[:-1, :, None]
        paths, joint = trace.paths()
        before = np.concatenate([np.zeros((len(paths), 1), dtype=int), paths[:, :-1]], axis=1)
        chosen = np.exp(np.nan_to_num(log_policy_TKK, nan=-np.inf))[np.arange(T), before, paths].prod(axis=1)
        np.testing.assert_allclose(chosen, joint / joint.sum(), atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(chains(impossible=False), st.integers(0, 2**32 - 1))
def test_elbo_is_below_the_evidence_and_equals_it_for_the_posterior(chain: LatentChain, seed: int) -> None:
    policy_NKK = soft_policy(chain, soft_values(chain))
    evidence_M = log_evidence(chain)
    rng = np.random.default_rng(seed)
    for m, trace in enumerate(dense(chain)):
        exact = temporal_elbo(trace.log_emission_TK, trace.log_prior_TKK, policy_NKK[trace.lines])
        assert exact.total == pytest.approx(evidence_M[m], abs=1e-9)
        assert exact.switch_kl == pytest.approx(exact.reconstruction - exact.total)
        assert exact.switch_kl >= -1e-9
        T, K = trace.log_emission_TK.shape
        other = temporal_elbo(trace.log_emission_TK, trace.log_prior_TKK, rng.dirichlet(np.ones(K), size=(T, K)))
        assert other.total <= evidence_M[m] + 1e-9
        sure_T1K = np.eye(K)[rng.integers(K, size=T)][:, None]
        one_path = temporal_elbo(trace.log_emission_TK, trace.log_prior_TKK, np.repeat(sure_T1K, K, axis=1))
        assert one_path.entropy == 0.0
        assert one_path.total <= evidence_M[m] + 1e-9


def test_samples_have_the_posteriors_frequencies() -> None:
    rng = np.random.default_rng(0)
    emissions = np.log(rng.dirichlet(np.ones(3), size=5))
    copies = 20_000
    chain = LatentChain.under(StickyPrior(0.6, 3), [emissions] * copies)
    latent_N, switch_N = sample_paths(chain, rng)
    found = posterior(chain)
    latents, switches = latent_N.reshape(copies, 5), switch_N.reshape(copies, 5)
    for k in range(3):
        np.testing.assert_allclose((latents == k).mean(axis=0), found.marginal_NK[:5, k], atol=0.015)
    np.testing.assert_allclose(switches.mean(axis=0), found.switch_N[:5], atol=0.015)
    assert (switches[:, 1:] | (latents[:, 1:] == latents[:, :-1])).all()


def test_samples_avoid_what_is_impossible() -> None:
    emissions = np.array([[-np.inf, 0.0, -np.inf], [0.0, -np.inf, -np.inf]])
    latent_N, _ = sample_paths(LatentChain.under(StickyPrior(0.5, 3), [emissions] * 100), np.random.default_rng(0))
    np.testing.assert_array_equal(latent_N.reshape(100, 2), [[1, 0]] * 100)


def test_alpha_near_one_is_next_token_prediction_and_near_zero_is_brite() -> None:
    rng = np.random.default_rng(1)
    emissions = np.log(rng.dirichlet(np.ones(4), size=7))
    sticky = posterior(LatentChain.under(StickyPrior(1 - 1e-12, 4), [emissions]))
    one_latent = np.log(np.mean(np.exp(emissions.sum(axis=0))))
    assert sticky.log_evidence_M[0] == pytest.approx(one_latent, abs=1e-6)
    assert sticky.switch_N[1:].max() < 1e-6
    # A model that does not read its latent: nothing is left but next-token prediction.
    deaf = np.repeat(emissions[:, :1], 4, axis=1)
    assert log_evidence(LatentChain.under(StickyPrior(1 - 1e-12, 4), [deaf]))[0] == pytest.approx(deaf[:, 0].sum())
    loose = posterior(LatentChain.under(StickyPrior(1e-12, 4), [emissions]))
    by_line = np.log(np.exp(emissions).mean(axis=1))
    assert loose.log_evidence_M[0] == pytest.approx(by_line.sum(), abs=1e-9)
    np.testing.assert_allclose(loose.switch_N, 1.0, atol=1e-9)


@given(st.floats(1e-6, 1 - 1e-6), st.integers(2, 500))
def test_penalty_and_stickiness_convert_into_each_other(alpha: float, num_latents: int) -> None:
    prior = StickyPrior(alpha, num_latents)
    another = (1 - prior.alpha) / prior.num_latents
    expected = np.log(prior.alpha + another) - np.log(another)
    assert prior.switch_penalty == pytest.approx(expected, rel=1e-6, abs=1e-9)
    back = StickyPrior.from_switch_penalty(prior.switch_penalty, num_latents)
    assert back.alpha == pytest.approx(alpha, rel=1e-6)


def test_a_fixed_penalty_ranks_paths_as_the_prior_does() -> None:
    prior, emissions = StickyPrior(0.8, 3), np.log(np.random.default_rng(2).dirichlet(np.ones(3), size=5))
    (trace,) = dense(LatentChain.under(prior, [emissions]))
    paths, joint = trace.paths()
    switches = (paths[:, 1:] != paths[:, :-1]).sum(axis=1)
    rewarded = emissions[np.arange(5), paths].sum(axis=1) - prior.switch_penalty * switches
    np.testing.assert_allclose(
        np.log(joint) - rewarded, 4 * np.log(prior.alpha + (1 - prior.alpha) / 3) - np.log(3), atol=1e-9
    )


def test_the_papers_penalty_is_a_weak_prior() -> None:
    assert StickyPrior.from_switch_penalty(0.05, 48).alpha == pytest.approx(0.00107, abs=1e-5)


def test_a_long_trace_does_not_underflow() -> None:
    chain = LatentChain.under(StickyPrior(0.9, 2), [np.full((5000, 2), np.log(1e-6))])
    assert posterior(chain).log_evidence_M[0] == pytest.approx(5000 * np.log(1e-6))
    assert soft_values(chain)[0, 0] == pytest.approx(5000 * np.log(1e-6))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_must_be_a_probability(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha="):
        StickyPrior(alpha, 4)


def test_bad_input_is_refused_with_a_reason() -> None:
    prior = StickyPrior(0.5, 2)
    with pytest.raises(ConfigError, match="at least 2 latents"):
        StickyPrior(0.5, 1)
    with pytest.raises(ConfigError, match="penalty=0"):
        StickyPrior.from_switch_penalty(0.0, 4)
    with pytest.raises(DataError, match="no trace"):
        LatentChain.under(prior, [])
    with pytest.raises(DataError, match=r"trace 1 have shape \(0, 2\)"):
        LatentChain.under(prior, [np.zeros((1, 2)), np.zeros((0, 2))])
    with pytest.raises(DataError, match=r"trace 0 have shape \(1, 3\)"):
        LatentChain.under(prior, [np.zeros((1, 3))])
    with pytest.raises(DataError, match=r"row 1 .* NaN"):
        LatentChain.under(prior, [np.array([[0.0, -1.0], [np.nan, 0.0]])])
    with pytest.raises(DataError, match="trace 1 has probability 0"):
        posterior(LatentChain.under(prior, [np.zeros((1, 2)), np.full((1, 2), -np.inf)]))
    with pytest.raises(DataError, match="lengths"):
        sticky_log_evidence(torch.zeros(1, 2, 2), torch.tensor([3]), 0.5)
    with pytest.raises(DataError, match="alpha=1"):
        sticky_log_evidence(torch.zeros(1, 2, 2), torch.tensor([2]), 1.0)
    with pytest.raises(DataError, match="distribution"):
        temporal_elbo(np.zeros((1, 2)), np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))
