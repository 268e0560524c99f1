"""What makes inference fast changes nothing: the exponential, shared rows, threads, memory used again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.inference.posterior import (
    LatentChain,
    Posterior,
    log_evidence,
    posterior,
    sample_paths,
    soft_values,
    viterbi_paths,
)
from ra3gym.abstractions.inference.posterior_kernels import exp_in_place
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]


def random_chain(seed: int, traces: int = 7, latents: int = 5, rows: int = 6) -> LatentChain:
    """Ragged traces over shared rows, one emission of which is impossible."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, traces)
    N = int(lengths.sum())
    log_emission_UK = rng.normal(0.0, 20.0, (rows, latents))
    log_emission_UK[0, 0] = -np.inf
    return LatentChain(
        log_emission_UK=log_emission_UK,
        row_N=rng.integers(0, rows, N),
        keep_N=rng.random(N),
        fresh_PK=rng.dirichlet(np.ones(latents), 3),
        fresh_row_M=rng.integers(0, 3, traces),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def assert_same(found: Posterior, expected: Posterior, rtol: float = 0.0) -> None:
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=rtol, atol=rtol)


@given(st.lists(st.floats(-708.0, 0.0), min_size=1, max_size=50))
def test_the_exponential_is_exact_to_the_last_place(numbers: list[float]) -> None:
    values = np.array(numbers)
    exp_in_place(values)
    np.testing.assert_allclose(values, np.exp(numbers), rtol=3e-16)


def test_the_exponential_of_minus_infinity_and_below_the_normal_numbers_is_0() -> None:
    values = np.array([0.0, -708.0, -708.1, -1e5, -1e308, -np.inf])
    exp_in_place(values)
    np.testing.assert_allclose(values, [1.0, np.exp(-708.0), 0, 0, 0, 0], rtol=3e-16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_shared_rows_are_the_same_as_rows_of_their_own(seed: int) -> None:
    shared = random_chain(seed)
    N = len(shared.row_N)
    own = replace(shared, log_emission_UK=shared.log_emission_UK[shared.row_N], row_N=np.arange(N))
    assert len(shared.log_emission_UK) < N == len(own.log_emission_UK)
    assert_same(posterior(own), posterior(shared))
    np.testing.assert_array_equal(log_evidence(own), log_evidence(shared))
    for paths_of_own, paths_of_shared in zip(
        sample_paths(own, np.random.default_rng(seed)), sample_paths(shared, np.random.default_rng(seed)), strict=True
    ):
        np.testing.assert_array_equal(paths_of_own, paths_of_shared)


@pytest.mark.parametrize("threads", [2, 3, 20])
def test_threads_change_no_bit(threads: int) -> None:
    chain = random_chain(3)
    assert_same(posterior(chain, threads=threads), posterior(chain))
    np.testing.assert_array_equal(log_evidence(chain, threads=threads), log_evidence(chain))


def test_memory_is_used_again() -> None:
    chain = random_chain(4)
    out = np.full((len(chain.row_N), chain.num_latents), np.nan)
    found = posterior(chain, out=out)
    assert found.marginal_NK is out
    assert_same(found, posterior(chain))


@pytest.mark.parametrize("out", [np.empty((2, 2)), np.empty((3, 2), np.float32), np.empty((2, 3)).T])
def test_memory_of_another_kind_is_refused(out: FloatArray) -> None:
    chain = LatentChain.under(StickyPrior(0.5, 2), [np.zeros((3, 2))])
    with pytest.raises(ConfigError, match=r"contiguous float64 of shape \(3, 2\)"):
        posterior(chain, out=out)


def test_threads_must_be_some() -> None:
    with pytest.raises(ConfigError, match="threads=0"):
        posterior(random_chain(0), threads=0)


def test_a_posterior_survives_a_latent_that_all_but_vanished() -> None:
    """Line 1 speaks against latent 1 by 600 nats, line 2 for it by 1250; nothing is ever drawn afresh."""
    chain = LatentChain(
        log_emission_UK=np.array([[0.0, -600.0], [-1300.0, -50.0], [-40.0, 0.0]]),
        row_N=np.arange(3),
        keep_N=np.ones(3),
        fresh_PK=np.full((1, 2), 0.5),
        fresh_row_M=np.zeros(1, dtype=np.int64),
        offsets=np.array([0, 3]),
    )
    found = posterior(chain)
    np.testing.assert_allclose(found.log_evidence_M, np.log(0.5) - 650.0)
    np.testing.assert_allclose(found.marginal_NK[:, 1], 1.0)
    np.testing.assert_allclose(found.switch_N, [1.0, 0.0, 0.0])


def test_fresh_latents_of_probability_0_never_come_up() -> None:
    """However much later lines prefer latent 2, and whatever its ratio would overflow to."""
    emissions = np.full((60, 3), -60.0)
    emissions[:, 2] = 0.0
    chain = replace(LatentChain.under(StickyPrior(0.5, 3), [emissions]), fresh_PK=np.array([[0.5, 0.5, 0.0]]))
    found = posterior(chain)
    np.testing.assert_allclose(found.log_evidence_M, 60 * -60.0)
    np.testing.assert_allclose(found.marginal_NK, np.tile([0.5, 0.5, 0.0], (60, 1)))
    assert not (viterbi_paths(chain)[0] == 2).any()


def test_arrays_of_other_types_are_taken() -> None:
    chain = random_chain(5)
    wide = np.repeat(chain.log_emission_UK, 2, axis=1)[:, ::2]  # not contiguous
    other = LatentChain(
        wide, chain.row_N.astype(np.int32), chain.keep_N, chain.fresh_PK, chain.fresh_row_M.tolist(), chain.offsets
    )
    assert_same(posterior(other), posterior(chain))
    single = replace(chain, log_emission_UK=chain.log_emission_UK.astype(np.float32))
    assert_same(posterior(single), posterior(chain), rtol=1e-3)


def test_an_impossible_trace_has_no_best_path_and_no_value() -> None:
    chain = LatentChain.under(StickyPrior(0.5, 2), [np.zeros((1, 2)), np.full((2, 2), -np.inf)])
    np.testing.assert_array_equal(log_evidence(chain), [0.0, -np.inf])
    np.testing.assert_array_equal(soft_values(chain)[:, 0], [0.0, -np.inf, -np.inf])
    for infer in (posterior, viterbi_paths, lambda chain: sample_paths(chain, np.random.default_rng(0))):
        with pytest.raises(DataError, match="trace 1 has probability 0"):
            infer(chain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_emission_UK": np.zeros((2, 1))}, "at least 2 latents"),
        ({"log_emission_UK": np.array([[0.0, 0.0], [np.inf, 0.0]])}, "row 1 of the emissions holds NaN or \\+inf"),
        ({"row_N": np.array([0, 2])}, "row_N holds 2: there are rows 0 to 1"),
        ({"row_N": np.array([-1, 0])}, "row_N holds -1"),
        ({"row_N": np.array([0])}, "offsets run from 0 to 2: row_N has lines 0 to 1"),
        ({"keep_N": np.array([0.5])}, r"keep_N has shape \(1,\)"),
        ({"keep_N": np.array([0.5, np.nan])}, "keep_N holds values"),
        ({"fresh_PK": np.full((1, 3), 1 / 3)}, r"fresh_PK has shape \(1, 3\)"),
        ({"fresh_PK": np.full((1, 2), 0.4)}, "must be a distribution"),
        ({"fresh_row_M": np.array([1])}, "fresh_row_M holds 1: there are rows 0 to 0"),
        ({"offsets": np.array([0, 0, 2])}, "a trace without lines"),
    ],
)
def test_a_chain_that_does_not_fit_is_refused(change: dict[str, FloatArray], message: str) -> None:
    chain = LatentChain.under(StickyPrior(0.5, 2), [np.zeros((2, 2))])
    with pytest.raises(DataError, match=message):
        replace(chain, **change)
