"""The compiled part of `OptionMDPVectorEnv`: where each environment is, and the pass over all of them.

Each environment consumes its own stream of uniform numbers, drawn ahead in blocks, in the order in which the single
environment draws them. An option can take any number of them. If a block runs out during an option, the pass leaves
that environment unfinished; the block is filled, and the next pass continues from there.

Shape letters: see CONTRIBUTING.md (E environments). The letters of the tables are those of `StepTables`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ra3gym.abstractions.options.mdp import BoolArray, FloatArray, IntArray
from ra3gym.envs.option_mdp.instance import StepTables
from ra3gym.kernels import njit

DRAWN = 512
"""How many uniform numbers are drawn ahead for an environment at once, so that generators are rarely called."""

PER_STEP = 3
"""Most numbers that one primitive step takes (the action, the next state, whether to stop); a beginning takes one."""


class State(NamedTuple):
    """The state of each environment; written in place.

    Attributes:
        state_E: the current state.
        clock_E: primitive steps of this episode.
        ended_E: bool; the next step begins an episode.
        last_state_E: the last state of the last episode that ended.
        uniforms: `(E, DRAWN)` numbers drawn ahead.
        cursor_E: the next of them to use.
    """

    state_E: IntArray
    clock_E: IntArray
    ended_E: BoolArray
    last_state_E: IntArray
    uniforms: FloatArray
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
            uniforms=np.zeros((num_envs, DRAWN)),
            cursor_E=np.full(num_envs, DRAWN),
        )


class Outcome(NamedTuple):
    """What a step leads to. A pass that stops within a step continues from it; `unfinished_E` says where."""

    unfinished_E: BoolArray
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
            unfinished_E=~flags(),
            reward_E=np.zeros(num_envs),
            discount_E=np.ones(num_envs),
            duration_E=np.zeros(num_envs, dtype=np.int64),
            illegal_E=flags(),
            terminated_E=flags(),
            truncated_E=flags(),
        )


@njit(nogil=True)
def _draw(cumulative: FloatArray, uniform: float) -> int:
    """Return `searchsorted(cumulative, uniform, side="right")`."""
    low, high = 0, len(cumulative)
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] <= uniform:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, error_model="numpy")
def step_all(
    tables: StepTables,
    state: State,
    outcome: Outcome,
    action_E: IntArray,
    gamma: float,
    horizon: int,
    same_step: bool,
) -> int:
    """Continue the step of every unfinished environment.

    Environments whose episode had ended begin the next one; with `same_step` they do so in the step that ends it.

    Returns:
        How many environments are still unfinished, because they need more uniform numbers.
    """
    # Numba counts references whenever a tuple of arrays is read from, so the tuples are unpacked before the loop.
    reached_SAS, reward_SA = tables.reached_SAS, tables.reward_SA
    chosen_OSA, stop_OS = tables.chosen_OSA, tables.stop_OS
    start_S, terminal_S = tables.start_S, tables.terminal_S
    action_of_choice, legal = tables.action_of_choice, tables.legal
    state_E, clock_E, ended_E, last_state_E = state.state_E, state.clock_E, state.ended_E, state.last_state_E
    uniforms, cursor_E = state.uniforms, state.cursor_E
    unfinished_E, duration_E = outcome.unfinished_E, outcome.duration_E
    reward_E, discount_E = outcome.reward_E, outcome.discount_E
    illegal_E, terminated_E, truncated_E = outcome.illegal_E, outcome.terminated_E, outcome.truncated_E
    A, last = reward_SA.shape[1], uniforms.shape[1] - PER_STEP
    num_unfinished = 0
    for e in range(len(action_E)):
        if not unfinished_E[e]:
            continue
        cursor, s, done = cursor_E[e], state_E[e], False
        if ended_E[e]:
            if cursor <= last:
                s, done = _draw(start_S, uniforms[e, cursor]), True
                cursor += 1
                clock_E[e], ended_E[e] = 0, False
        else:
            index = action_E[e]
            # A positive duration means that an option is running; legality is checked where an action begins.
            if duration_E[e] == 0:
                illegal_E[e] = not (0 <= index < len(action_of_choice) and legal[s, index])
            illegal = illegal_E[e]
            z = -1 if illegal else action_of_choice[index]
            while cursor <= last and not done:
                duration_E[e] += 1
                clock_E[e] += 1
                if not illegal:
                    a = z
                    if z >= A:
                        a = _draw(chosen_OSA[z - A, s], uniforms[e, cursor])
                        cursor += 1
                    reward_E[e] += discount_E[e] * reward_SA[s, a]
                    discount_E[e] *= gamma
                    s = _draw(reached_SAS[s, a], uniforms[e, cursor])
                    cursor += 1
                terminated = terminal_S[s]
                if terminated or clock_E[e] == horizon:
                    done = True
                    terminated_E[e], truncated_E[e] = terminated, not terminated
                    last_state_E[e] = s
                    if same_step:
                        s = _draw(start_S, uniforms[e, cursor])
                        cursor += 1
                        clock_E[e] = 0
                    else:
                        ended_E[e] = True
                elif illegal or z < A:
                    done = True
                else:
                    done = uniforms[e, cursor] < stop_OS[z - A, s]
                    cursor += 1
        cursor_E[e], state_E[e] = cursor, s
        unfinished_E[e] = not done
        if not done:
            num_unfinished += 1
    return num_unfinished
