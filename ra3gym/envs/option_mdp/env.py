"""`ra3gym/OptionMDP-v0`: a random finite MDP whose optimum is known; a step is a primitive action or an option.

Shape suffixes: S states, A primitive actions, O options, n actions of the environment.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.options.family import FamilyOptions, random_option_mdp
from ra3gym.abstractions.options.mdp import Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.abstractions.options.solvers import optimal_values
from ra3gym.envs.options import check_choice, check_render_mode, refuse_unknown_options
from ra3gym.errors import ConfigError

Observation: TypeAlias = Any
ObservationKind = Literal["onehot", "index", "dict"]

DEFAULT_HORIZON = 100
"""Primitive steps; at the default gamma of 0.95, what comes later is worth less than 0.6% of it."""


class StepTables(NamedTuple):
    """What a step reads; never written to. Distributions are cumulative, so that one uniform number draws from them."""

    reached_SAS: FloatArray
    reward_SA: FloatArray
    chosen_OSA: FloatArray
    stop_OS: FloatArray
    start_S: FloatArray
    terminal_S: BoolArray
    action_n: IntArray
    """Each action of the environment among all of the MDP's: primitives first, then options."""
    legal_Sn: BoolArray


def cumulative(probabilities: FloatArray) -> FloatArray:
    """Running sums over the last axis that end at 1 exactly: `searchsorted(row, u, "right")` draws for u in [0, 1).

    An entry of probability 0 is never drawn.
    """
    sums = np.cumsum(probabilities, axis=-1)
    behind = np.flip(np.maximum.accumulate(np.flip(probabilities > 0.0, axis=-1), axis=-1), axis=-1)
    last = behind & ~np.concatenate([behind[..., 1:], np.zeros_like(behind[..., :1])], axis=-1)
    return np.ascontiguousarray(np.where(last | ~behind, 1.0, sums))


def make_tables(mdp: OptionMDP, actions: Actions) -> StepTables:
    """The tables of an MDP with these actions; errors as `OptionMDP.action_indices`."""
    action_n = mdp.action_indices(actions)
    return StepTables(
        reached_SAS=cumulative(mdp.transition_SAS),
        reward_SA=np.ascontiguousarray(mdp.reward_SA, dtype=np.float64),
        chosen_OSA=cumulative(mdp.policy_OSA),
        stop_OS=np.ascontiguousarray(mdp.termination_OS, dtype=np.float64),
        start_S=cumulative(mdp.start_S),
        terminal_S=np.ascontiguousarray(mdp.terminal_S),
        action_n=np.ascontiguousarray(action_n, dtype=np.int64),
        legal_Sn=np.ascontiguousarray(mdp.model.legal_ZS[action_n].T),
    )


class KnownOptimum:
    """What both forms of the environment know of their instance with the actions that they have."""

    mdp: OptionMDP
    _tables: StepTables

    @property
    def gamma_bar(self) -> float:
        """`sup E[gamma^tau | s, z]` over this environment's actions."""
        return self.mdp.gamma_bar(self._tables.action_n)

    def optimal_value(self) -> float:
        """V* over this environment's actions and no horizon, in expectation over the first state."""
        return float(self.mdp.start_S @ self._optimal_value_S)

    @cached_property
    def _optimal_value_S(self) -> FloatArray:
        return optimal_values(self.mdp, self._tables.action_n)


class OptionMDPEnv(KnownOptimum, gym.Env[Observation, np.int64]):
    """A random finite MDP with planted options and known optimal values.

    **Actions.** `Discrete(n)`: primitive actions, options, both (primitives first), or any subset of them. An option
    follows its policy until it stops, the episode ends or the horizon is reached. Options begin only in their
    initiation sets; the mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"`
    observation. *An illegal action* (masked, or out of range) does nothing: one primitive step passes in the same state
    without reward, and `info["illegal_action"]` says so. Where nothing is legal, and in terminal states, the mask is
    open.

    **Observations.** `"onehot"` (default): float32 `(S,)`. `"index"`: `Discrete(S)`. `"dict"`: a flat Dict of the
    one-hot state as `"obs"`, and `"mask"`, int8 `(n,)`.

    **Reward.** That of the MDP for a primitive action; for an option the *discounted* sum over its steps,
    `sum_{k < tau} gamma^k r_k`. A learner that discounts a decision's successor by `gamma ** duration` maximises the
    discounted return per primitive step, whose optimum `optimal_value` gives.

    **Episode.** `reset` draws the first state from `mdp.start_S` with `self.np_random`, or takes that of
    `options={"state": ...}`. Terminal states terminate; `horizon` primitive steps truncate, also inside an option.

    **Info.** Always `state` and `action_mask`. After a step also `duration`, `{"steps": tau}`, and `illegal_action`.

    Args:
        mdp: an instance of your own; `instance_seed` and `family` are then not read.
        instance_seed: of the random instance (`reset(seed=...)` seeds the episodes in it).
        actions: "both" (default), "primitives", "options", or indices among all of the MDP's actions.
        observation: see above.
        horizon: of an episode, in primitive steps.
        render_mode: `None`, "ansi" or "rgb_array".
        family: keywords of `ra3gym.abstractions.options.family.random_option_mdp`: `num_states`, `mean_duration`,
            `gamma` and so on.

    Raises:
        ConfigError: an option outside its choices, or an unknown keyword.
        UnknownNameError: no such set of actions.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        mdp: OptionMDP | None = None,
        *,
        instance_seed: int = 0,
        actions: Actions = "both",
        observation: ObservationKind = "onehot",
        horizon: int = DEFAULT_HORIZON,
        render_mode: str | None = None,
        **family: Unpack[FamilyOptions],
    ) -> None:
        check_options(observation, horizon, render_mode, self.metadata["render_modes"])
        self.mdp = load_mdp(mdp, instance_seed, family)
        self.actions = actions
        self.horizon = horizon
        self.render_mode = render_mode
        self._tables = make_tables(self.mdp, actions)
        self._mask_Sn = mask_table(self._tables)
        self._observation = observation
        self.action_space = gym.spaces.Discrete(len(self._tables.action_n))
        self.observation_space = observation_space(self._tables, observation)
        self._state = self._clock = 0
        self._last: str = ""
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin in a random state, or in that of `options={"state": ...}`; `ConfigError` if it cannot begin there."""
        super().reset(seed=seed)
        options = options or {}
        refuse_unknown_options(options, ("state",))
        if "state" in options:
            begun = checked_state(options["state"], self._tables)
        else:
            begun = int(np.searchsorted(self._tables.start_S, self.np_random.random(), side="right"))
        self._state, self._clock, self._last, self._running = begun, 0, "", True
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action until it stops; `gymnasium.error.ResetNeeded` when no episode is under way."""
        if not self._running:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        tables, index = self._tables, int(action)
        legal = 0 <= index < len(tables.action_n) and bool(tables.legal_Sn[self._state, index])
        return self._advance(int(tables.action_n[index]) if legal else None)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(n,)`: which actions are legal now; the dialect of sb3-contrib."""
        return np.asarray(self._mask_Sn[self._state], dtype=np.bool_)

    def render(self) -> Any:
        """Where the episode is: a line of text for "ansi"; for "rgb_array" uint8 `(H, W, 3)`, a cell for each state
        with its optimal value."""
        if self.render_mode is None:
            return None
        status = state_line(self.mdp, self._state, self._clock, self.horizon) + self._last
        if self.render_mode == "ansi":
            return f"# {status}\n"
        return draw_states(self.mdp, status, self._optimal_value_S, self._state)

    def _advance(self, action: int | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one of the MDP's actions until it stops; `None` stands still for a step."""
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
            ended = bool(tables.terminal_S[self._state]) or self._clock == self.horizon
            stopped = ended or action is None or action < A
            if not stopped and action is not None:
                stopped = rng.random() < tables.stop_OS[action - A, self._state]
        terminated = bool(tables.terminal_S[self._state])
        truncated = not terminated and self._clock == self.horizon
        self._running = not (terminated or truncated)
        name = "an illegal action" if action is None else action_name(self.mdp, action)
        self._last = f"; {name} took {duration} steps for {reward:.3f}"
        info = self._info() | {"duration": {"steps": duration}, "illegal_action": action is None}
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> Observation:
        if self._observation == "index":
            return np.int64(self._state)
        onehot_S = np.zeros(self.mdp.num_states, dtype=np.float32)
        onehot_S[self._state] = 1.0
        if self._observation == "onehot":
            return onehot_S
        return {"obs": onehot_S, "mask": self._mask_Sn[self._state].copy()}

    def _info(self) -> dict[str, Any]:
        return {"state": self._state, "action_mask": self._mask_Sn[self._state].copy()}


@lru_cache(maxsize=8)
def _instance(seed: int, family: tuple[tuple[str, Any], ...]) -> OptionMDP:
    return random_option_mdp(seed, **dict(family))


def load_mdp(mdp: OptionMDP | None, instance_seed: int, family: FamilyOptions) -> OptionMDP:
    """The given instance, or the random one; the environments of a `SyncVectorEnv` share it."""
    if unknown := set(family) - set(FamilyOptions.__annotations__):
        known = ", ".join(FamilyOptions.__annotations__)
        raise ConfigError(f"unknown option {', '.join(map(repr, sorted(unknown)))}; the family's are: {known}")
    return mdp or _instance(instance_seed, tuple(sorted(family.items())))


def mask_table(tables: StepTables) -> npt.NDArray[np.int8]:
    """int8 `(S, n)`: the legal actions of each state; all ones where none is."""
    return (tables.legal_Sn | ~tables.legal_Sn.any(axis=1, keepdims=True)).astype(np.int8)


def observation_space(tables: StepTables, observation: ObservationKind) -> gym.spaces.Space[Any]:
    """The space of one environment's observations."""
    S, n = tables.legal_Sn.shape
    if observation == "index":
        return gym.spaces.Discrete(S)
    onehot = gym.spaces.Box(0.0, 1.0, (S,), np.float32)
    if observation == "onehot":
        return onehot
    return gym.spaces.Dict({"obs": onehot, "mask": gym.spaces.Box(0, 1, (n,), np.int8)})


def check_options(observation: str, horizon: int, render_mode: str | None, render_modes: list[str]) -> None:
    """Refuse values outside their choices with `ConfigError`."""
    check_choice("observation", observation, ObservationKind)
    check_render_mode(render_mode, render_modes)
    if horizon < 1:
        raise ConfigError(f"horizon={horizon}: an episode has at least 1 primitive step")


def checked_state(wanted: Any, tables: StepTables) -> int:
    """A state that an episode can begin in; `ConfigError` for any other."""
    live = np.flatnonzero(~tables.terminal_S)
    if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or int(wanted) not in live:
        raise ConfigError(f"state={wanted!r}: give a state that is not terminal, from 0 to {live[-1]}")
    return int(wanted)


def state_line(mdp: OptionMDP, state: int, clock: int, horizon: int) -> str:
    """Where an episode is, as render says it."""
    return f"state {state}{' (terminal)' if mdp.terminal_S[state] else ''}, {clock} of {horizon} steps"


def draw_states(mdp: OptionMDP, status: str, value_S: FloatArray, state: int) -> npt.NDArray[np.uint8]:
    """Where an episode is, as a picture; see `ra3gym.envs.frames`."""
    from ra3gym.envs.frames import states_frame

    return states_frame(status, value_S, mdp.terminal_S, state)


def action_name(mdp: OptionMDP, action: int) -> str:
    """What render calls one of the MDP's actions."""
    A = mdp.num_primitives
    return f"primitive {action}" if action < A else f"option {action - A}"
