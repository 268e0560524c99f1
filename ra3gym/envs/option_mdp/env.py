"""`ra3gym/OptionMDP-v0`: a random finite MDP whose optimum is known; a step is a primitive action or an option.

Shape letters: see CONTRIBUTING.md (S states, A primitive actions).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.options.mdp import OptionMDP
from ra3gym.envs.keywords import RENDER_MODES, refuse_unknown_options
from ra3gym.envs.option_mdp.instance import Instance, OptionMDPConfig

Observation: TypeAlias = Any


class OptionMDPEnv(Instance, gym.Env[Observation, np.int64]):
    """A random finite MDP with planted options and known optimal values.

    **Actions.** Discrete: primitive actions, options, both (primitives first), or any subset of them. An option
    follows its policy until it stops, the episode ends or the horizon is reached. Options begin only in their
    initiation sets; the mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"`
    observation. *An illegal action* (masked, or out of range) does nothing: one primitive step passes in the same state
    without reward, and `info["illegal_action"]` says so. Where nothing is legal, and in terminal states, the mask is
    all ones.

    **Observations.** `"onehot"` (default): float32 `(S,)`. `"index"`: `Discrete(S)`. `"dict"`: a flat Dict of the
    one-hot state as `"obs"`, and `"mask"`, int8, one number per action.

    **Reward.** That of the MDP for a primitive action; for an option the *discounted* sum over its steps,
    `sum_{k < tau} gamma^k r_k`. A learner that discounts a decision's successor by `gamma ** duration` maximizes the
    discounted return per primitive step, whose optimum `optimal_value` gives.

    **Episode.** `reset` draws the first state from `mdp.start_S` with `self.np_random`, or takes that of
    `options={"state": ...}`. Terminal states terminate; `horizon` primitive steps truncate, also inside an option.

    **Info.** Always `state` and `action_mask`. After a step also `duration`, `{"steps": tau}`, and `illegal_action`.

    The keywords are the fields of `OptionMDPConfig`, and those of the family.

    Raises:
        ConfigError: a keyword outside its choices.
        UnknownNameError: no such keyword, or set of actions.
    """

    config_type = OptionMDPConfig
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(self, mdp: OptionMDP | None = None, **keywords: Any) -> None:
        self._open(mdp, keywords)
        self.render_mode = self.config.render_mode
        self.action_space, self.observation_space = self._spaces()
        self._state = self._clock = 0
        self._last_step = ""
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin in a random state, or in that of `options={"state": ...}`; `ConfigError` if it cannot begin there."""
        super().reset(seed=seed)
        options = options or {}
        refuse_unknown_options(options, ("state",))
        if "state" in options:
            self._state = self._checked_state(options["state"])
        else:
            self._state = int(np.searchsorted(self._tables.start_S, self.np_random.random(), side="right"))
        self._clock, self._last_step, self._is_running = 0, "", True
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action until it stops; `gymnasium.error.ResetNeeded` if no episode is running."""
        if not self._is_running:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        tables, choice = self._tables, int(action)
        in_range = 0 <= choice < len(tables.action_of_choice)
        is_legal = in_range and bool(tables.legal[self._state, choice])
        return self._advance(int(tables.action_of_choice[choice]) if is_legal else None)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal now, bool, as sb3-contrib asks for it."""
        return np.asarray(self._mask[self._state], dtype=np.bool_)

    def render(self) -> Any:
        """Return the state of the episode: a line of text for "ansi"; for "rgb_array" a uint8 array of height, width
        and 3 colors, with a cell for each state and its optimal value."""
        return None if self.render_mode is None else self._render_state(self._state, self._clock, self._last_step)

    def _advance(self, action: int | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one of the MDP's actions until it stops; `None` lets one step pass in the same state."""
        tables, rng, gamma = self._tables, self.np_random, self.mdp.gamma
        A = self.mdp.num_primitives
        reward, discount, duration, stopped = 0.0, 1.0, 0, False
        while not stopped:
            duration += 1
            self._clock += 1
            if action is not None:
                primitive = action
                if action >= A:
                    chosen_A = tables.chosen_OSA[action - A, self._state]
                    primitive = int(np.searchsorted(chosen_A, rng.random(), side="right"))
                reward += discount * float(tables.reward_SA[self._state, primitive])
                discount *= gamma
                reached_S = tables.reached_SAS[self._state, primitive]
                self._state = int(np.searchsorted(reached_S, rng.random(), side="right"))
            ended = bool(tables.terminal_S[self._state]) or self._clock == self.config.horizon
            stopped = ended or action is None or action < A
            if not stopped and action is not None:
                stopped = rng.random() < tables.stop_OS[action - A, self._state]
        terminated = bool(tables.terminal_S[self._state])
        truncated = not terminated and self._clock == self.config.horizon
        self._is_running = not (terminated or truncated)
        self._last_step = f"; {self._name(action)} took {duration} steps for {reward:.3f}"
        info = self._info() | {"duration": {"steps": duration}, "illegal_action": action is None}
        return self._observe(), reward, terminated, truncated, info

    def _name(self, action: int | None) -> str:
        A = self.mdp.num_primitives
        if action is None:
            return "an illegal action"
        return f"primitive {action}" if action < A else f"option {action - A}"

    def _observe(self) -> Observation:
        if self.config.observation == "index":
            return np.int64(self._state)
        onehot_S = np.zeros(self.mdp.num_states, dtype=np.float32)
        onehot_S[self._state] = 1.0
        if self.config.observation == "onehot":
            return onehot_S
        return {"obs": onehot_S, "mask": self._mask[self._state].copy()}

    def _info(self) -> dict[str, Any]:
        return {"state": self._state, "action_mask": self._mask[self._state].copy()}
