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
from gymnasium.vector.utils import batch_space

from ra3gym.abstractions.option_mdp import Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.abstractions.option_mdp_family import FamilyOptions
from ra3gym.abstractions.option_mdp_solvers import optimal_values
from ra3gym.envs.batched_episodes import Info, Where, chosen_by_mask, parse_autoreset_mode, seed_generators
from ra3gym.envs.option_mdp import (
    DEFAULT_HORIZON,
    Observation,
    ObservationKind,
    OptionMDPEnv,
    check_options,
    checked_state,
    load_mdp,
    make_tables,
    mask_table,
    observation_space,
)
from ra3gym.envs.option_mdp_kernels import BLOCK, PER_STEP, Outcome, State, step_all
from ra3gym.errors import ConfigError


class OptionMDPVectorEnv(gym.vector.VectorEnv[Observation, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`OptionMDPEnv`, `num_envs` times, over one instance.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. Environment i has a generator of its own, seeded with `seed + i`, so that its episodes do not
    depend on `num_envs`. Returned arrays are new in each call and may be kept.

    `reset` takes an int, a list of one seed (or `None`) per environment, or `None`. Its options are `state`, one for
    all or a sequence of one per environment, for the episodes it begins; and `reset_mask`, bool `(E,)`: which
    environments to reset. `action_masks()` gives all masks, bool `(E, n)`.

    Args:
        mdp: see `OptionMDPEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        autoreset_mode: NEXT_STEP (default): the step behind an episode's last ignores the action and begins the next
            episode. SAME_STEP: the last step returns the next episode's first observation, and the last one as
            `info["final_obs"]` and `info["final_info"]`. DISABLED: reset ended environments with `reset_mask`.

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
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs} must be at least 1")
        self._mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self.mdp = load_mdp(mdp, instance_seed, family)
        self.actions = actions
        self.horizon = horizon
        self.render_mode = render_mode
        self.num_envs = num_envs
        self._tables = make_tables(self.mdp, actions)
        self._mask_Sn = mask_table(self._tables)
        self._onehot_SS = np.eye(self.mdp.num_states, dtype=np.float32)
        self._observation = observation
        self.single_action_space = gym.spaces.Discrete(len(self._tables.action_n))
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space(self._tables, observation)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._state = State.blank(num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._begun = False

    @property
    def gamma_bar(self) -> float:
        """`sup E[gamma^tau | s, z]` over these environments' actions."""
        return self.mdp.gamma_bar(self._tables.action_n)

    def optimal_value(self) -> float:
        """V* over these actions and no horizon, in expectation over the first state."""
        return float(self.mdp.start_S @ optimal_values(self.mdp, self._tables.action_n))

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
        options = options or {}
        if unknown := set(options) - {"state", "reset_mask"}:
            shown = ", ".join(map(repr, sorted(unknown)))
            raise ConfigError(f"unknown reset option {shown}; known: 'state', 'reset_mask'")
        chosen_E = chosen_by_mask(options, self.num_envs, self._begun)
        pinned_E = self._pinned(options)
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
        new_E = seed_generators(self._rngs, seed, chosen_E)
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
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")
        state, E = self._state, self.num_envs
        if self._mode is AutoresetMode.DISABLED and state.ended_E.any():
            raise gym.error.ResetNeeded(
                f"environment {int(state.ended_E.argmax())} has ended: reset it with options={{'reset_mask': ...}}"
            )
        action_E = np.ascontiguousarray(actions, dtype=np.int64)
        if action_E.shape != (E,):
            raise gym.error.InvalidAction(f"actions of shape {action_E.shape}: give one for each of {E} environments")
        began_E = state.ended_E.copy()
        outcome = Outcome.blank(E)
        same_step = self._mode is AutoresetMode.SAME_STEP
        while step_all(self._tables, state, outcome, action_E, self.mdp.gamma, self.horizon, same_step):
            self._refill()

        info: Info = {}
        ended = outcome.terminated_E | outcome.truncated_E
        if same_step and ended.any():
            self._add_final(info, Where.of(ended), outcome)
        self._add_current(info, Where.everywhere(E), state.state_E)
        stepped_E = ~(ended if same_step else began_E)
        if stepped_E.any():
            _add_outcome(info, Where.of(stepped_E), outcome)
        return self._observe(state.state_E), outcome.reward_E, outcome.terminated_E, outcome.truncated_E, info

    def action_masks(self) -> BoolArray:
        """bool `(E, n)`: which actions are legal now."""
        return self._mask_Sn[self._state.state_E].astype(np.bool_)

    def render(self) -> tuple[str, ...] | None:
        """One line on where each episode is, without its last action, for `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        ends = np.where(self.mdp.terminal_S[self._state.state_E], " (terminal)", "")
        rows = zip(self._state.state_E.tolist(), ends.tolist(), self._state.clock_E.tolist(), strict=True)
        return tuple(f"# state {state}{end}, {clock} of {self.horizon} steps\n" for state, end, clock in rows)

    def _refill(self) -> None:
        """Fill up the blocks that may not last for one more primitive step, behind what is left of them."""
        uniform_EB, cursor_E = self._state.uniform_EB, self._state.cursor_E
        for e in np.flatnonzero(cursor_E > BLOCK - PER_STEP).tolist():
            rng = self._rngs[e]
            if rng is not None:
                left = BLOCK - int(cursor_E[e])
                uniform_EB[e, :left] = uniform_EB[e, BLOCK - left :]
                rng.random(out=uniform_EB[e, left:])
                cursor_E[e] = 0

    def _pinned(self, options: dict[str, Any]) -> IntArray:
        """The state that each environment is to begin in; -1 for a random one."""
        if "state" not in options:
            return np.full(self.num_envs, -1)
        wanted = options["state"]
        if not isinstance(wanted, (Sequence, np.ndarray)):
            return np.full(self.num_envs, checked_state(wanted, self._tables))
        if len(wanted) != self.num_envs:
            raise ConfigError(f"{len(wanted)} states for {self.num_envs} environments: give one for each, or one state")
        return np.array([checked_state(one, self._tables) for one in wanted])

    def _observe(self, state_W: IntArray) -> Observation:
        if self._observation == "index":
            return state_W.copy()
        onehot_WS = self._onehot_SS[state_W]
        return onehot_WS if self._observation == "onehot" else {"obs": onehot_WS, "mask": self._mask_Sn[state_W]}

    def _add_current(self, info: Info, where: Where, state_E: IntArray) -> None:
        state_W = state_E[where.rows_W].copy()
        where.put(info, "state", state_W)
        where.put(info, "action_mask", self._mask_Sn[state_W])

    def _add_final(self, info: Info, where: Where, outcome: Outcome) -> None:
        """`final_obs` and `final_info` of environments that have gone on to another episode within this step."""
        last_W = self._state.last_state_E[where.rows_W]
        observed = self._observe(last_W)
        final_obs_E = np.full(self.num_envs, None, dtype=object)
        for i, e in enumerate(where.rows_W.tolist()):
            final_obs_E[e] = {k: v[i] for k, v in observed.items()} if isinstance(observed, dict) else observed[i]
        final: Info = {}
        self._add_current(final, where, self._state.last_state_E)
        _add_outcome(final, where, outcome)
        info["final_obs"], info["_final_obs"] = final_obs_E, where.mask_E.copy()
        info["final_info"], info["_final_info"] = final, where.mask_E.copy()


def _add_outcome(info: Info, where: Where, outcome: Outcome) -> None:
    steps: Info = {}
    where.put(steps, "steps", outcome.duration_E[where.rows_W])
    info["duration"], info["_duration"] = steps, where.mask_E.copy()
    where.put(info, "illegal_action", outcome.illegal_E[where.rows_W])
