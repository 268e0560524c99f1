"""The compiled part of `TraceInferenceVectorEnv`: what a problem says as tables, where each environment is, and the
passes over all of them.

Shape suffixes: E environments, N lines in all, K latents, O observed numbers, T lines of the longest trace, B
pre-drawn traces. Row N of a table stands for what is behind a last line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference_problem import NO_LATENT, Float32Array, InferenceProblem
from ra3gym.abstractions.posterior import BoolArray, FloatArray, IntArray

Int8Array = npt.NDArray[np.int8]

BLOCK = 256
"""Traces drawn at once for an environment: a generator is called rarely, and gives the same as one call for each."""


class Tables(NamedTuple):
    """What the problem says of each line; never written to."""

    known_NO: Float32Array
    legal_NK: Int8Array
    """Legal whatever the latent behind; a sticky prior can only add that one."""
    some_N: BoolArray
    """Whether any of them is."""
    row_N: IntArray
    keep_N: FloatArray
    fresh_row_N: IntArray
    log_emission_RK: FloatArray
    fresh_SK: FloatArray
    offsets: IntArray


class State(NamedTuple):
    """Where each environment is; written in place."""

    trace_E: IntArray
    line_E: IntArray
    previous_E: IntArray
    log_joint_E: FloatArray
    path_ET: IntArray
    ended_E: BoolArray
    drawn_EB: IntArray
    cursor_E: IntArray
    last_trace_E: IntArray
    """This and the next two: of the last episode that ended."""
    last_latent_E: IntArray
    last_log_joint_E: FloatArray

    @classmethod
    def blank(cls, num_envs: int, longest: int) -> State:
        def integers() -> IntArray:
            return np.zeros(num_envs, dtype=np.int64)

        return cls(
            trace_E=integers(),
            line_E=integers(),
            previous_E=np.full(num_envs, NO_LATENT),
            log_joint_E=np.zeros(num_envs),
            path_ET=np.zeros((num_envs, longest), dtype=np.int64),
            ended_E=np.zeros(num_envs, dtype=np.bool_),
            drawn_EB=np.zeros((num_envs, BLOCK), dtype=np.int64),
            cursor_E=np.full(num_envs, BLOCK),
            last_trace_E=integers(),
            last_latent_E=integers(),
            last_log_joint_E=np.zeros(num_envs),
        )


def make_tables(problem: InferenceProblem) -> Tables:
    chain = problem.chain
    fresh_row_N = chain.fresh_row_M[problem.trace_N]
    first_N = np.zeros(len(chain.row_N), dtype=np.bool_)
    first_N[chain.offsets[:-1]] = True
    drawn_NK = np.where(first_N, 1.0, 1.0 - chain.keep_N)[:, None] * chain.fresh_SK[fresh_row_N]
    legal_NK = (drawn_NK > 0.0) & (chain.log_emission_RK[chain.row_N] > -np.inf)
    end_O = problem.end_observations(np.zeros(1, dtype=np.int64))
    end_O[0, problem.feature_NF.shape[1]] = 0.0  # the latent behind is filled in at each step
    return Tables(
        known_NO=np.ascontiguousarray(np.concatenate([problem.known_NO, end_O])),
        legal_NK=np.concatenate([legal_NK, np.ones((1, problem.num_latents), dtype=np.bool_)]).astype(np.int8),
        some_N=np.append(legal_NK.any(axis=1), True),
        row_N=_plain(chain.row_N, np.int64),
        keep_N=_plain(chain.keep_N, np.float64),
        fresh_row_N=_plain(fresh_row_N, np.int64),
        log_emission_RK=_plain(chain.log_emission_RK, np.float64),
        fresh_SK=_plain(chain.fresh_SK, np.float64),
        offsets=_plain(chain.offsets, np.int64),
    )


def _plain(array: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
    """Contiguous, of this type: then one compiled version of the kernels serves every problem."""
    return np.ascontiguousarray(array, dtype=dtype)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _begin(tables: Tables, state: State, e: int, trace: int) -> None:
    """Begin a trace; the next one drawn when `trace` is negative."""
    if trace < 0:
        trace = state.drawn_EB[e, state.cursor_E[e]]
        state.cursor_E[e] += 1
    state.trace_E[e] = trace
    state.line_E[e] = tables.offsets[trace]
    state.previous_E[e] = -1
    state.log_joint_E[e] = 0.0
    state.ended_E[e] = False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write(tables: Tables, state: State, e: int, obs_EO: Float32Array, mask_EK: Int8Array) -> None:
    """Observation and mask of one environment."""
    line, previous = state.line_E[e], state.previous_E[e]
    K = mask_EK.shape[1]
    obs_EO[e] = tables.known_NO[line]
    mask_EK[e] = tables.legal_NK[line]
    if previous < 0:
        return
    obs_EO[e, obs_EO.shape[1] - 2 - K + previous] = 1.0
    if line < len(tables.row_N):
        if tables.keep_N[line] > 0.0 and tables.log_emission_RK[tables.row_N[line], previous] > -np.inf:
            mask_EK[e, previous] = 1
        if not tables.some_N[line] and mask_EK[e, previous] == 0:
            mask_EK[e] = 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def look(tables: Tables, state: State, obs_EO: Float32Array, mask_EK: Int8Array) -> None:
    """Observations and masks of all environments as they are."""
    for e in range(len(state.line_E)):
        _write(tables, state, e, obs_EO, mask_EK)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def begin_chosen(
    tables: Tables,
    state: State,
    chosen_E: BoolArray,
    pinned_E: IntArray,
    obs_EO: Float32Array,
    mask_EK: Int8Array,
) -> None:
    for e in range(len(chosen_E)):
        if chosen_E[e]:
            _begin(tables, state, e, pinned_E[e])
        _write(tables, state, e, obs_EO, mask_EK)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def step_all(
    tables: Tables,
    state: State,
    action_E: IntArray,
    floor: float,
    same_step: bool,
    obs_EO: Float32Array,
    mask_EK: Int8Array,
    reward_E: FloatArray,
    terminated_E: BoolArray,
) -> int:
    """Step every environment; the first one with a wrong action, and then nothing is changed, or -1."""
    K = mask_EK.shape[1]
    for e in range(len(action_E)):
        if not state.ended_E[e] and not 0 <= action_E[e] < K:
            return e
    for e in range(len(action_E)):
        reward_E[e], terminated_E[e] = 0.0, False
        if state.ended_E[e]:
            _begin(tables, state, e, -1)
        else:
            trace, line, previous, latent = state.trace_E[e], state.line_E[e], state.previous_E[e], action_E[e]
            keep = tables.keep_N[line] if previous >= 0 else 0.0
            fresh = tables.fresh_SK[tables.fresh_row_N[line], latent]
            log_prior = np.log((1.0 - keep) * fresh + (keep if latent == previous else 0.0))
            gain = tables.log_emission_RK[tables.row_N[line], latent] + log_prior
            reward_E[e] = max(gain, floor)
            state.log_joint_E[e] += gain
            state.path_ET[e, line - tables.offsets[trace]] = latent
            state.previous_E[e] = latent
            state.line_E[e] = line + 1
            if line + 1 == tables.offsets[trace + 1]:
                terminated_E[e] = True
                state.line_E[e] = len(tables.row_N)
                state.last_trace_E[e] = trace
                state.last_latent_E[e] = latent
                state.last_log_joint_E[e] = state.log_joint_E[e]
                state.ended_E[e] = not same_step
                if same_step:
                    _begin(tables, state, e, -1)
        _write(tables, state, e, obs_EO, mask_EK)
    return -1
