"""What both forms of `ra3gym/OptionMDP-v0` share: their configuration, the tables of their instance, and its optimum.

Shape letters: see CONTRIBUTING.md (S states, A primitive actions, O options). An action that the environment offers is
called a choice here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.options.family import FamilyOptions, random_option_mdp
from ra3gym.abstractions.options.mdp import Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.abstractions.options.solvers import optimal_values
from ra3gym.envs.keywords import check_choice, check_render_mode, config_from, field_names
from ra3gym.errors import ConfigError, UnknownNameError

ObservationKind = Literal["onehot", "index", "dict"]


@dataclass(frozen=True)
class OptionMDPConfig:
    """The keywords of `OptionMDP-v0`.

    Attributes:
        mdp: an instance of your own; `instance_seed` and `family` are then not read.
        instance_seed: seed of the random instance (`reset(seed=...)` seeds the episodes in it).
        actions: "both" (default), "primitives", "options", or indices among all of the MDP's actions.
        observation: "onehot" gives the state as a one-hot vector, "index" as a number, "dict" the vector as "obs"
            beside the action mask as "mask".
        horizon: primitive steps of an episode. At the default gamma of 0.95, what comes after 100 steps is worth less
            than 0.6% of it.
        render_mode: `None`, "ansi" or "rgb_array".
        family: keywords of `ra3gym.abstractions.options.family.random_option_mdp`: `num_states`, `mean_duration`,
            `gamma` and so on. Each may also be given as a keyword of the environment.

    Raises:
        ConfigError: a value outside its choices or range.
        UnknownNameError: no such keyword of the family.
    """

    mdp: OptionMDP | None = None
    _: KW_ONLY
    instance_seed: int = 0
    actions: Actions = "both"
    observation: ObservationKind = "onehot"
    horizon: int = 100
    render_mode: str | None = None
    family: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("observation", self.observation, ObservationKind)
        check_render_mode(self.render_mode)
        if self.horizon < 1:
            raise ConfigError(f"horizon={self.horizon}: an episode has at least 1 primitive step")
        for name in self.family:
            if name not in FamilyOptions.__annotations__:
                raise UnknownNameError("keyword of the family", name, FamilyOptions.__annotations__)


def option_mdp_config(owner: object, mdp: OptionMDP | None, keywords: Mapping[str, Any]) -> OptionMDPConfig:
    """Return the configuration that the arguments of an environment make, keywords of the family included.

    Raises:
        UnknownNameError: a keyword of neither the configuration nor the family.
    """
    known = [*field_names(OptionMDPConfig), *FamilyOptions.__annotations__]
    for name in keywords:
        if name not in known:
            raise UnknownNameError(f"keyword of {type(owner).__name__}", name, known)
    family = {name: value for name, value in keywords.items() if name in FamilyOptions.__annotations__}
    own = {name: value for name, value in keywords.items() if name not in family}
    return config_from(OptionMDPConfig, owner, (mdp,), {**own, "family": {**own.get("family", {}), **family}})


class StepTables(NamedTuple):
    """What a step reads; never written to. Distributions are cumulative, so that one uniform number draws from them.

    Attributes:
        reached_SAS: cumulative probabilities of the next state.
        reward_SA: expected reward of a primitive step.
        chosen_OSA: cumulative probabilities of an option's primitive actions.
        stop_OS: probability that an option stops on entering a state.
        start_S: cumulative probabilities of the first state.
        terminal_S: bool.
        action_of_choice: the number of each choice among all actions of the MDP: primitives first, then options.
        legal: bool, a row per state, a column per choice.
    """

    reached_SAS: FloatArray
    reward_SA: FloatArray
    chosen_OSA: FloatArray
    stop_OS: FloatArray
    start_S: FloatArray
    terminal_S: BoolArray
    action_of_choice: IntArray
    legal: BoolArray


def cumulative(probabilities: FloatArray) -> FloatArray:
    """Return running sums over the last axis that end at exactly 1.

    `searchsorted(row, u, "right")` then draws for u in [0, 1). An entry of probability 0 is never drawn.
    """
    sums = np.cumsum(probabilities, axis=-1)
    # At the last positive entry the sum is set to 1, and after it no entry can be reached.
    any_from_here = np.flip(np.maximum.accumulate(np.flip(probabilities > 0.0, axis=-1), axis=-1), axis=-1)
    any_after = np.concatenate([any_from_here[..., 1:], np.zeros_like(any_from_here[..., :1])], axis=-1)
    return np.ascontiguousarray(np.where(any_after, sums, 1.0))


def make_tables(mdp: OptionMDP, actions: Actions) -> StepTables:
    """Return the tables of an MDP with these actions; errors as in `OptionMDP.action_indices`."""
    action_of_choice = mdp.action_indices(actions)
    return StepTables(
        reached_SAS=cumulative(mdp.transition_SAS),
        reward_SA=np.ascontiguousarray(mdp.reward_SA, dtype=np.float64),
        chosen_OSA=cumulative(mdp.policy_OSA),
        stop_OS=np.ascontiguousarray(mdp.termination_OS, dtype=np.float64),
        start_S=cumulative(mdp.start_S),
        terminal_S=np.ascontiguousarray(mdp.terminal_S),
        action_of_choice=np.ascontiguousarray(action_of_choice, dtype=np.int64),
        legal=np.ascontiguousarray(mdp.model.legal_ZS[action_of_choice].T),
    )


class Instance:
    """An MDP with the actions that an environment offers, and what is known of it; a base of both forms."""

    config: OptionMDPConfig
    mdp: OptionMDP
    actions: Actions
    _tables: StepTables
    _mask: npt.NDArray[np.int8]

    def _open(self, mdp: OptionMDP | None, keywords: Mapping[str, Any]) -> None:
        """Set what the arguments of an environment say."""
        self.config = option_mdp_config(self, mdp, keywords)
        if self.config.mdp is None:
            self.mdp = _random_instance(self.config.instance_seed, tuple(sorted(self.config.family.items())))
        else:
            self.mdp = self.config.mdp
        self.actions = self.config.actions
        self._tables = make_tables(self.mdp, self.actions)
        legal = self._tables.legal
        self._mask = (legal | ~legal.any(axis=1, keepdims=True)).astype(np.int8)

    @property
    def gamma_bar(self) -> float:
        """`sup E[gamma^tau | s, z]` over this environment's actions."""
        return self.mdp.gamma_bar(self._tables.action_of_choice)

    def optimal_value(self) -> float:
        """Return V* over this environment's actions and without a horizon, in expectation over the first state."""
        return float(self.mdp.start_S @ self._optimal_value_S)

    @cached_property
    def _optimal_value_S(self) -> FloatArray:
        return optimal_values(self.mdp, self._tables.action_of_choice)

    def _spaces(self) -> tuple[gym.spaces.Discrete, gym.spaces.Space[Any]]:
        """Return the spaces of one environment's actions and observations."""
        num_states, num_choices = self._tables.legal.shape
        actions = gym.spaces.Discrete(num_choices)
        if self.config.observation == "index":
            return actions, gym.spaces.Discrete(num_states)
        onehot = gym.spaces.Box(0.0, 1.0, (num_states,), np.float32)
        if self.config.observation == "onehot":
            return actions, onehot
        mask = gym.spaces.Box(0, 1, (num_choices,), np.int8)
        return actions, gym.spaces.Dict({"obs": onehot, "mask": mask})

    def _checked_state(self, wanted: Any) -> int:
        """Return a state that an episode can begin in; `ConfigError` for any other."""
        live: Sequence[int] = np.flatnonzero(~self._tables.terminal_S).tolist()
        if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or int(wanted) not in live:
            raise ConfigError(f"state={wanted!r}: give a state that is not terminal, from 0 to {live[-1]}")
        return int(wanted)

    def _render_state(self, state: int, clock: int, last_step: str = "") -> Any:
        """Return a line of text, or a picture with a cell for each state, as the render mode says."""
        terminal = " (terminal)" if self.mdp.terminal_S[state] else ""
        status = f"state {state}{terminal}, {clock} of {self.config.horizon} steps{last_step}"
        if self.config.render_mode == "ansi":
            return f"# {status}\n"
        from ra3gym.envs.frames import states_frame

        return states_frame(status, self._optimal_value_S, self.mdp.terminal_S, state)


@lru_cache(maxsize=8)
def _random_instance(seed: int, family: tuple[tuple[str, Any], ...]) -> OptionMDP:
    """Return the random instance; the environments of a `SyncVectorEnv` share it."""
    return random_option_mdp(seed, **dict(family))
