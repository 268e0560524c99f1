"""The compiled part of `TraceInferenceVectorEnv`: a problem as tables, the state of each environment, and the passes
over all environments.

Shape letters: see CONTRIBUTING.md (E environments, N lines of all traces, K latents, D width of an observation, T lines
of the longest trace). Row N of a table is for the state after a last line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference.posterior import BoolArray, FloatArray, IntArray
from ra3gym.abstractions.inference.problem import NO_LATENT, Float32Array, InferenceProblem
from ra3gym.kernels import njit

Int8Array = npt.NDArray[np.int8]

DRAWN = 256
"""How many traces are drawn ahead for an environment. One call of a generator gives the same as one for each trace."""


class Tables(NamedTuple):
    """What the problem says of each line; never written to.

    Attributes:
        known_ND: observations without the previous latent.
        legal_NK: legal whatever the previous latent, if there is one. A sticky prior can only add that latent.
        legal_fresh_NK: legal if there is no previous latent.
        some_N: whether any of `legal_NK` is.
        row_N: the line's row of `log_emission_UK`.
        keep_N: probability that the line keeps the previous latent.
        fresh_row_N: the line's row of `fresh_PK`.
        log_emission_UK: log-likelihoods of the distinct lines, in nats.
        fresh_PK: the distinct distributions of fresh latents.
        offsets: the first line of each trace, and the end of the last.
    """

    known_ND: Float32Array
    legal_NK: Int8Array
    legal_fresh_NK: Int8Array
    some_N: BoolArray
    row_N: IntArray
    keep_N: FloatArray
    fresh_row_N: IntArray
    log_emission_UK: FloatArray
    fresh_PK: FloatArray
    offsets: IntArray


class State(NamedTuple):
    """The state of each environment; written in place.

    Attributes:
        trace_E, line_E: the current trace, and its current line.
        previous_E: the previous latent.
        log_joint_E: nats, of the path so far.
        path_ET: the latents so far.
        ended_E: bool; the next step begins an episode.
        drawn_traces: `(E, DRAWN)` traces drawn ahead.
        cursor_E: the next of them to use.
        last_trace_E, last_latent_E, last_log_joint_E: of the last episode that ended.
    """

    trace_E: IntArray
    line_E: IntArray
    previous_E: IntArray
    log_joint_E: FloatArray
    path_ET: IntArray
    ended_E: BoolArray
    drawn_traces: IntArray
    cursor_E: IntArray
    last_trace_E: IntArray
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
            drawn_traces=np.zeros((num_envs, DRAWN), dtype=np.int64),
            cursor_E=np.full(num_envs, DRAWN),
            last_trace_E=integers(),
            last_latent_E=integers(),
            last_log_joint_E=np.zeros(num_envs),
        )


def make_tables(problem: InferenceProblem) -> Tables:
    """Return the tables of a problem, in types and layouts that need only one compiled version of the passes."""
    chain = problem.chain
    fresh_row_N = chain.fresh_row_M[problem.trace_N]
    fresh_NK, possible_NK = chain.fresh_PK[fresh_row_N], chain.log_emission_UK[chain.row_N] > -np.inf
    legal_NK = ((1.0 - chain.keep_N)[:, None] * fresh_NK > 0.0) & possible_NK
    legal_fresh_NK = (fresh_NK > 0.0) & possible_NK
    legal_fresh_NK |= ~legal_fresh_NK.any(axis=1, keepdims=True)  # where nothing is legal, the mask is all ones
    end_1D = problem.end_observations(np.full(1, NO_LATENT))  # the previous latent is filled in at each step
    end_1K = np.ones((1, problem.num_latents), dtype=np.bool_)
    return Tables(
        known_ND=np.ascontiguousarray(np.concatenate([problem.known_ND, end_1D])),
        legal_NK=np.concatenate([legal_NK, end_1K]).astype(np.int8),
        legal_fresh_NK=np.concatenate([legal_fresh_NK, end_1K]).astype(np.int8),
        some_N=np.append(legal_NK.any(axis=1), True),
        row_N=_plain(chain.row_N, np.int64),
        keep_N=_plain(chain.keep_N, np.float64),
        fresh_row_N=_plain(fresh_row_N, np.int64),
        log_emission_UK=_plain(chain.log_emission_UK, np.float64),
        fresh_PK=_plain(chain.fresh_PK, np.float64),
        offsets=_plain(chain.offsets, np.int64),
    )


def _plain(array: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
    """Return a contiguous array of this type."""
    return np.ascontiguousarray(array, dtype=dtype)


# Numba counts references to each array whenever a tuple of arrays is passed on or read from, which costs more than the
# rest of the loop. So tuples are unpacked before the loops, and no loop calls a function.


@njit(nogil=True, error_model="numpy")
def begin_chosen(tables: Tables, state: State, chosen_E: BoolArray, pinned_E: IntArray) -> None:
    """Begin traces in the chosen environments: those of `pinned_E`, or the next ones drawn ahead where it is -1."""
    offsets, drawn_traces, cursor_E = tables.offsets, state.drawn_traces, state.cursor_E
    trace_E, line_E, previous_E = state.trace_E, state.line_E, state.previous_E
    log_joint_E, ended_E = state.log_joint_E, state.ended_E
    for e in range(len(chosen_E)):
        if chosen_E[e]:
            trace = pinned_E[e]
            if trace < 0:
                trace = drawn_traces[e, cursor_E[e]]
                cursor_E[e] += 1
            trace_E[e] = trace
            line_E[e] = offsets[trace]
            previous_E[e] = -1
            log_joint_E[e] = 0.0
            ended_E[e] = False


@njit(nogil=True, error_model="numpy")
def observe_all(tables: Tables, state: State, obs_ED: Float32Array, mask_EK: Int8Array) -> None:
    """Write the current observations and masks of all environments."""
    known_ND, some_N = tables.known_ND, tables.some_N
    legal_NK, legal_fresh_NK = tables.legal_NK, tables.legal_fresh_NK
    row_N, keep_N, log_emission_UK = tables.row_N, tables.keep_N, tables.log_emission_UK
    line_E, previous_E = state.line_E, state.previous_E
    size, K = obs_ED.shape[1], mask_EK.shape[1]
    for e in range(len(line_E)):
        line, previous = line_E[e], previous_E[e]
        for o in range(size):
            obs_ED[e, o] = known_ND[line, o]
        if previous < 0:
            for k in range(K):
                mask_EK[e, k] = legal_fresh_NK[line, k]
        else:
            for k in range(K):
                mask_EK[e, k] = legal_NK[line, k]
            obs_ED[e, size - 2 - K + previous] = 1.0
            if line < len(row_N):
                if keep_N[line] > 0.0 and log_emission_UK[row_N[line], previous] > -np.inf:
                    mask_EK[e, previous] = 1
                if not some_N[line] and mask_EK[e, previous] == 0:
                    for k in range(K):
                        mask_EK[e, k] = 1


@njit(nogil=True, error_model="numpy")
def step_all(
    tables: Tables,
    state: State,
    action_E: IntArray,
    floor: float,
    same_step: bool,
    obs_ED: Float32Array,
    mask_EK: Int8Array,
    reward_E: FloatArray,
    illegal_E: BoolArray,
    terminated_E: BoolArray,
) -> None:
    """Step every environment, and write the results into the last five arrays.

    Environments whose episode had ended begin the next one; with `same_step` they do so in the step that ends it.
    """
    K, E, end = mask_EK.shape[1], len(action_E), len(tables.row_N)
    row_N, keep_N, fresh_row_N, offsets = tables.row_N, tables.keep_N, tables.fresh_row_N, tables.offsets
    log_emission_UK, fresh_PK = tables.log_emission_UK, tables.fresh_PK
    trace_E, line_E, previous_E = state.trace_E, state.line_E, state.previous_E
    log_joint_E, path_ET, ended_E = state.log_joint_E, state.path_ET, state.ended_E
    last_trace_E, last_latent_E = state.last_trace_E, state.last_latent_E
    last_log_joint_E = state.last_log_joint_E
    begins_E = ended_E.copy()
    for e in range(E):
        reward_E[e], illegal_E[e], terminated_E[e] = 0.0, False, False
        if not ended_E[e]:
            trace, line, previous, latent = trace_E[e], line_E[e], previous_E[e], action_E[e]
            if 0 <= latent < K:
                keep = keep_N[line] if previous >= 0 else 0.0
                fresh = fresh_PK[fresh_row_N[line], latent]
                log_prior = np.log((1.0 - keep) * fresh + (keep if latent == previous else 0.0))
                gain = log_emission_UK[row_N[line], latent] + log_prior
            else:
                latent, gain = -1, -np.inf  # NO_LATENT
            reward_E[e] = max(gain, floor)
            illegal_E[e] = gain == -np.inf
            log_joint_E[e] += gain
            path_ET[e, line - offsets[trace]] = latent
            previous_E[e] = latent
            line_E[e] = line + 1
            if line + 1 == offsets[trace + 1]:
                terminated_E[e] = True
                line_E[e] = end
                last_trace_E[e], last_latent_E[e], last_log_joint_E[e] = trace, latent, log_joint_E[e]
                ended_E[e], begins_E[e] = not same_step, same_step
    begin_chosen(tables, state, begins_E, np.full(E, -1))
    observe_all(tables, state, obs_ED, mask_EK)
