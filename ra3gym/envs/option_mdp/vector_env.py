"""Many `OptionMDP-v0` at once, as arrays: one compiled pass over all environments per step.

Shape letters: see CONTRIBUTING.md (E environments, B of them selected, S states).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ra3gym.abstractions.options.mdp import BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.envs.batched_episodes import BatchedEnv, Info, Selection
from ra3gym.envs.keywords import check_vector
from ra3gym.envs.option_mdp.env import Observation, OptionMDPEnv
from ra3gym.envs.option_mdp.instance import Instance, OptionMDPConfig
from ra3gym.envs.option_mdp.kernels import DRAWN, PER_STEP, Outcome, State, step_all


class OptionMDPVectorEnv(Instance, BatchedEnv):
    """`OptionMDPEnv`, `num_envs` times, over one instance.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. See `BatchedEnv` for seeds, options of `reset` (here `state` and `reset_mask`), autoreset modes and
    masks.

    Args:
        mdp: the first field of `OptionMDPConfig`.
        num_envs: E, at least 1.
        autoreset_mode: see `BatchedEnv`.
        **keywords: the other fields of `OptionMDPConfig`, and those of the family.

    Raises:
        ConfigError, UnknownNameError: as `OptionMDPEnv`; `ConfigError` also for a number of environments below 1 or
            an unknown mode.
    """

    config_type = OptionMDPConfig
    metadata: dict[str, Any] = {**OptionMDPEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        mdp: OptionMDP | None = None,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **keywords: Any,
    ) -> None:
        mode = check_vector(num_envs, autoreset_mode)
        self._open(mdp, keywords)
        BatchedEnv.__init__(self, num_envs, *self._spaces(), mode=mode, render_mode=self.config.render_mode)
        self._onehot_SS = np.eye(self.mdp.num_states, dtype=np.float32)
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
        chosen_E, new_E, pinned_E = self._prepare_reset(seed, options or {}, "state", self._checked_state)
        state = self._state
        state.cursor_E[new_E] = DRAWN
        self._draw_ahead()
        drawn_B = np.flatnonzero(chosen_E & (pinned_E < 0))
        uniform_B = state.uniforms[drawn_B, state.cursor_E[drawn_B]]
        state.cursor_E[drawn_B] += 1
        pinned_E[drawn_B] = np.searchsorted(self._tables.start_S, uniform_B, side="right")
        state.state_E[chosen_E] = pinned_E[chosen_E]
        state.clock_E[chosen_E] = 0
        state.ended_E[chosen_E] = False
        self._has_begun = True
        info: Info = {}
        self._add_current(info, Selection.of_mask(chosen_E), state.state_E)
        return self._observe(state.state_E), info

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Observation, FloatArray, BoolArray, BoolArray, Info]:
        """Take an action in each environment until it stops.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action for each environment.
        """
        state, E = self._state, self.num_envs
        action_E = self._checked_actions(actions, state.ended_E)
        idle_E = state.ended_E.copy()
        outcome = Outcome.blank(E)
        same_step = self._mode is AutoresetMode.SAME_STEP
        while step_all(self._tables, state, outcome, action_E, self.mdp.gamma, self.config.horizon, same_step):
            self._draw_ahead()

        info: Info = {}
        ended_E = outcome.terminated_E | outcome.truncated_E
        if same_step:
            ended = Selection.of_mask(ended_E)
            final: Info = {}
            self._add_current(final, ended, state.last_state_E)
            _add_outcome(final, ended, outcome)
            ended.add_final_to(info, self._observe(state.last_state_E[ended.index_B]), final)
        self._add_current(info, Selection.of_all(E), state.state_E)
        _add_outcome(info, Selection.of_mask(~(ended_E if same_step else idle_E)), outcome)
        return self._observe(state.state_E), outcome.reward_E, outcome.terminated_E, outcome.truncated_E, info

    def action_masks(self) -> BoolArray:
        """Return which actions are legal now, bool, a row per environment."""
        return self._mask[self._state.state_E].astype(np.bool_)

    def render(self) -> tuple[Any, ...] | None:
        """Return what the single environments render, one for each, without their last actions."""
        if self.render_mode is None:
            return None
        states, clocks = self._state.state_E.tolist(), self._state.clock_E.tolist()
        return tuple(self._render_state(state, clock) for state, clock in zip(states, clocks, strict=True))

    def _draw_ahead(self) -> None:
        """Fill up the blocks that may not last for another primitive step, after what is left of them."""
        uniforms, cursor_E = self._state.uniforms, self._state.cursor_E
        for e in np.flatnonzero(cursor_E > DRAWN - PER_STEP).tolist():
            left = DRAWN - int(cursor_E[e])
            uniforms[e, :left] = uniforms[e, DRAWN - left :]
            self._rngs[e].random(out=uniforms[e, left:])
            cursor_E[e] = 0

    def _observe(self, state_B: IntArray) -> Observation:
        if self.config.observation == "index":
            return state_B.copy()
        onehot_BS = self._onehot_SS[state_B]
        return onehot_BS if self.config.observation == "onehot" else {"obs": onehot_BS, "mask": self._mask[state_B]}

    def _add_current(self, info: Info, selected: Selection, state_E: IntArray) -> None:
        state_B = state_E[selected.index_B].copy()
        selected.add_to(info, {"state": state_B, "action_mask": self._mask[state_B]})


def _add_outcome(info: Info, selected: Selection, outcome: Outcome) -> None:
    duration_B, illegal_B = outcome.duration_E[selected.index_B], outcome.illegal_E[selected.index_B]
    selected.add_to(info, {"duration": {"steps": duration_B}, "illegal_action": illegal_B})
