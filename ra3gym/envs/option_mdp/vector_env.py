"""Many `OptionMDP-v0` at once, as arrays: one compiled pass over all environments per step.

Shape suffixes: E environments, W of them concerned, S states, n actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ra3gym.abstractions.options.family import FamilyOptions
from ra3gym.abstractions.options.mdp import Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.envs.batched_episodes import BatchedEnv, Info, Where
from ra3gym.envs.option_mdp.env import (
    DEFAULT_HORIZON,
    KnownOptimum,
    Observation,
    ObservationKind,
    OptionMDPEnv,
    check_options,
    checked_state,
    draw_states,
    load_mdp,
    make_tables,
    mask_table,
    observation_space,
    state_line,
)
from ra3gym.envs.option_mdp.kernels import BLOCK, PER_STEP, Outcome, State, step_all
from ra3gym.envs.options import check_vector


class OptionMDPVectorEnv(KnownOptimum, BatchedEnv):
    """`OptionMDPEnv`, `num_envs` times, over one instance.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. See `BatchedEnv` for seeds, options of `reset` (here `state` and `reset_mask`), autoreset modes and
    masks.

    Args:
        mdp: see `OptionMDPEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        autoreset_mode: see `BatchedEnv`.

    Raises:
        ConfigError, UnknownNameError: as `OptionMDPEnv`; `ConfigError` also for a number of environments below 1 or
            an unknown mode.
    """

    metadata: dict[str, Any] = {**OptionMDPEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        mdp: OptionMDP | None = None,
        num_envs: int = 1,
        *,
        instance_seed: int = 0,
        actions: Actions = "both",
        observation: ObservationKind = "onehot",
        horizon: int = DEFAULT_HORIZON,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **family: Unpack[FamilyOptions],
    ) -> None:
        check_options(observation, horizon, render_mode, self.metadata["render_modes"])
        mode = check_vector(num_envs, autoreset_mode)
        self.mdp = load_mdp(mdp, instance_seed, family)
        self.actions = actions
        self.horizon = horizon
        self._tables = make_tables(self.mdp, actions)
        super().__init__(
            num_envs,
            gym.spaces.Discrete(len(self._tables.action_n)),
            observation_space(self._tables, observation),
            mode=mode,
            render_mode=render_mode,
        )
        self._mask_Sn = mask_table(self._tables)
        self._onehot_SS = np.eye(self.mdp.num_states, dtype=np.float32)
        self._observation = observation
        self._state = State.blank(num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin episodes in all environments, or in those of `options["reset_mask"]`.

        Raises:
            ConfigError: an unknown option, a state that cannot be begun in, or not one seed or state per environment.
        """
        chosen_E, new_E, pinned_E = self._prepare_reset(
            seed, options or {}, "state", lambda state: checked_state(state, self._tables)
        )
        state = self._state
        state.cursor_E[new_E] = BLOCK
        self._refill()
        drawn_W = np.flatnonzero(chosen_E & (pinned_E < 0))
        uniform_W = state.uniform_EB[drawn_W, state.cursor_E[drawn_W]]
        state.cursor_E[drawn_W] += 1
        pinned_E[drawn_W] = np.searchsorted(self._tables.start_S, uniform_W, side="right")
        state.state_E[chosen_E] = pinned_E[chosen_E]
        state.clock_E[chosen_E] = 0
        state.ended_E[chosen_E] = False
        self._begun = True
        info: Info = {}
        self._add_current(info, Where.of(chosen_E), state.state_E)
        return self._observe(state.state_E), info

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Observation, FloatArray, BoolArray, BoolArray, Info]:
        """Take an action in each environment until it stops.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action for each environment.
        """
        state, E = self._state, self.num_envs
        action_E = self._checked_actions(actions, state.ended_E)
        began_E = state.ended_E.copy()
        outcome = Outcome.blank(E)
        same_step = self._mode is AutoresetMode.SAME_STEP
        while step_all(self._tables, state, outcome, action_E, self.mdp.gamma, self.horizon, same_step):
            self._refill()

        info: Info = {}
        ended = outcome.terminated_E | outcome.truncated_E
        if same_step:
            where = Where.of(ended)
            final: Info = {}
            self._add_current(final, where, state.last_state_E)
            _add_outcome(final, where, outcome)
            where.put_final(info, self._observe(state.last_state_E[where.rows_W]), final)
        self._add_current(info, Where.everywhere(E), state.state_E)
        _add_outcome(info, Where.of(~(ended if same_step else began_E)), outcome)
        return self._observe(state.state_E), outcome.reward_E, outcome.terminated_E, outcome.truncated_E, info

    def action_masks(self) -> BoolArray:
        """bool `(E, n)`: which actions are legal now."""
        return self._mask_Sn[self._state.state_E].astype(np.bool_)

    def render(self) -> tuple[Any, ...] | None:
        """What the single environments render, one for each, without their last actions."""
        if self.render_mode is None:
            return None
        where = list(zip(self._state.state_E.tolist(), self._state.clock_E.tolist(), strict=True))
        lines = [state_line(self.mdp, state, clock, self.horizon) for state, clock in where]
        if self.render_mode == "ansi":
            return tuple(f"# {line}\n" for line in lines)
        return tuple(
            draw_states(self.mdp, line, self._optimal_value_S, state)
            for line, (state, _) in zip(lines, where, strict=True)
        )

    def _refill(self) -> None:
        """Fill up the blocks that may not last for one more primitive step, behind what is left of them."""
        uniform_EB, cursor_E = self._state.uniform_EB, self._state.cursor_E
        for e in np.flatnonzero(cursor_E > BLOCK - PER_STEP).tolist():
            left = BLOCK - int(cursor_E[e])
            uniform_EB[e, :left] = uniform_EB[e, BLOCK - left :]
            self._rngs[e].random(out=uniform_EB[e, left:])
            cursor_E[e] = 0

    def _observe(self, state_W: IntArray) -> Observation:
        if self._observation == "index":
            return state_W.copy()
        onehot_WS = self._onehot_SS[state_W]
        return onehot_WS if self._observation == "onehot" else {"obs": onehot_WS, "mask": self._mask_Sn[state_W]}

    def _add_current(self, info: Info, where: Where, state_E: IntArray) -> None:
        state_W = state_E[where.rows_W].copy()
        where.put(info, {"state": state_W, "action_mask": self._mask_Sn[state_W]})


def _add_outcome(info: Info, where: Where, outcome: Outcome) -> None:
    rows_W = where.rows_W
    where.put(info, {"duration": {"steps": outcome.duration_E[rows_W]}, "illegal_action": outcome.illegal_E[rows_W]})
