"""The compiled part of `OptionMDPVectorEnv`: where each environment is, and the pass over all of them.

Each environment consumes its own stream of uniform numbers, drawn ahead in blocks, in the order in which the single
environment draws them. An option takes as many as it likes: where a block runs out in its midst, the pass leaves that
environment waiting, the block is filled up, and the next pass goes on.

Shape suffixes: E environments, B uniform numbers drawn ahead; the tables' are those of `option_mdp`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from ra3gym.abstractions.options.mdp import BoolArray, FloatArray, IntArray
from ra3gym.envs.option_mdp.env import StepTables

BLOCK = 512
"""Uniform numbers drawn at once for an environment: a generator is called rarely."""

PER_STEP = 3
"""At most so many are drawn in one primitive step (what to do, where it leads, whether to stop) or at a beginning."""


class State(NamedTuple):
    """Where each environment is; written in place."""

    state_E: IntArray
    clock_E: IntArray
    ended_E: BoolArray
    last_state_E: IntArray
    """Where the last episode that ended did."""
    uniform_EB: FloatArray
    cursor_E: IntArray

    @classmethod
    def blank(cls, num_envs: int) -> State:
        def integers() -> IntArray:
            return np.zeros(num_envs, dtype=np.int64)

        return cls(
            state_E=integers(),
            clock_E=integers(),
            ended_E=np.zeros(num_envs, dtype=np.bool_),
            last_state_E=integers(),
            uniform_EB=np.zeros((num_envs, BLOCK)),
            cursor_E=np.full(num_envs, BLOCK),
        )


class Outcome(NamedTuple):
    """What a step comes to; a pass that stops half-way goes on from it."""

    waiting_E: BoolArray
    """Where the step is not over yet."""
    reward_E: FloatArray
    discount_E: FloatArray
    duration_E: IntArray
    illegal_E: BoolArray
    terminated_E: BoolArray
    truncated_E: BoolArray

    @classmethod
    def blank(cls, num_envs: int) -> Outcome:
        def flags() -> BoolArray:
            return np.zeros(num_envs, dtype=np.bool_)

        return cls(
            waiting_E=~flags(),
            reward_E=np.zeros(num_envs),
            discount_E=np.ones(num_envs),
            duration_E=np.zeros(num_envs, dtype=np.int64),
            illegal_E=flags(),
            terminated_E=flags(),
            truncated_E=flags(),
        )


@numba.njit(cache=True, nogil=True)
def _draw(cumulative: FloatArray, uniform: float) -> int:
    """`searchsorted(cumulative, uniform, side="right")`."""
    low, high = 0, len(cumulative)
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] <= uniform:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True, error_model="numpy")
def step_all(
    tables: StepTables,
    state: State,
    outcome: Outcome,
    action_E: IntArray,
    gamma: float,
    horizon: int,
    same_step: bool,
) -> int:
    """Go on with the step of every environment that waits; begin an episode where one had ended, or, with `same_step`,
    ends now.

    Returns:
        How many environments still wait, for more uniform numbers.
    """
    # Numba counts references whenever a tuple of arrays is read from: so they are unpacked ahead of the loop.
    reached_SAS, reward_SA, chosen_OSA, stop_OS = (
        tables.reached_SAS,
        tables.reward_SA,
        tables.chosen_OSA,
        tables.stop_OS,
    )
    start_S, terminal_S, action_n, legal_Sn = tables.start_S, tables.terminal_S, tables.action_n, tables.legal_Sn
    state_E, clock_E, ended_E, last_state_E = state.state_E, state.clock_E, state.ended_E, state.last_state_E
    uniform_EB, cursor_E = state.uniform_EB, state.cursor_E
    waiting_E, reward_E, discount_E, duration_E = (
        outcome.waiting_E,
        outcome.reward_E,
        outcome.discount_E,
        outcome.duration_E,
    )
    illegal_E, terminated_E, truncated_E = outcome.illegal_E, outcome.terminated_E, outcome.truncated_E
    A, last = reward_SA.shape[1], uniform_EB.shape[1] - PER_STEP
    waits = 0
    for e in range(len(action_E)):
        if not waiting_E[e]:
            continue
        cursor, s, done = cursor_E[e], state_E[e], False
        if ended_E[e]:
            if cursor <= last:
                s, done = _draw(start_S, uniform_EB[e, cursor]), True
                cursor += 1
                clock_E[e], ended_E[e] = 0, False
        else:
            index = action_E[e]
            # An option is under way where it has already lasted; legality is asked where it begins.
            if duration_E[e] == 0:
                illegal_E[e] = not (0 <= index < len(action_n) and legal_Sn[s, index])
            illegal = illegal_E[e]
            z = -1 if illegal else action_n[index]
            while cursor <= last and not done:
                duration_E[e] += 1
                clock_E[e] += 1
                if not illegal:
                    a = z
                    if z >= A:
                        a = _draw(chosen_OSA[z - A, s], uniform_EB[e, cursor])
                        cursor += 1
                    reward_E[e] += discount_E[e] * reward_SA[s, a]
                    discount_E[e] *= gamma
                    s = _draw(reached_SAS[s, a], uniform_EB[e, cursor])
                    cursor += 1
                terminated = terminal_S[s]
                if terminated or clock_E[e] == horizon:
                    done = True
                    terminated_E[e], truncated_E[e] = terminated, not terminated
                    last_state_E[e] = s
                    if same_step:
                        s = _draw(start_S, uniform_EB[e, cursor])
                        cursor += 1
                        clock_E[e] = 0
                    else:
                        ended_E[e] = True
                elif illegal or z < A:
                    done = True
                else:
                    done = uniform_EB[e, cursor] < stop_OS[z - A, s]
                    cursor += 1
        cursor_E[e], state_E[e] = cursor, s
        waiting_E[e] = not done
        if not done:
            waits += 1
    return waits
