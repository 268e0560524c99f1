"""Finite Markov decision processes with options, exactly: the setting in which RA3's theorems can be checked.

An option (Sutton, Precup and Singh, 1999) has an initiation set, a policy and a termination probability. A primitive
action is an option of one step, so that one table describes all actions: the *action model* of a state and an action
holds the expected discounted reward until it stops, and the discounted distribution of the state where it stops,

    R(s, z) = E[sum_{k < tau} gamma^k r_k],      D(s' | s, z) = E[gamma^tau [s_tau = s']].

Value iteration over any set Z of actions is `V <- max_z R(s, z) + sum_s' D(s' | s, z) V(s')` from V = 0. It contracts
by `gamma_bar = sup E[gamma^tau | s, z]`. The end of an episode counts as gamma^tau = 0, since nothing follows it.
`solvers` runs it; `family` draws random instances with planted options.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ra3gym.errors import ConfigError, DataError, UnknownNameError

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ActionSet: TypeAlias = Literal["primitives", "options", "both"]
Actions: TypeAlias = ActionSet | Sequence[int] | IntArray
"""The name of a set, or indices among all Z actions."""


class ActionModel(NamedTuple):
    """What each action of a set does from each state; all is 0 where the action is not legal.

    Attributes:
        reward_ZS: expected discounted reward until the action stops.
        next_ZSS: `E[gamma^tau [s_tau = s']]`, over states that are not terminal; the sum of a row is `E[gamma^tau]`.
        duration_ZS: expected number of primitive steps; `inf` where an option may never stop.
        legal_ZS: bool, where the action may begin.
    """

    reward_ZS: FloatArray
    next_ZSS: FloatArray
    duration_ZS: FloatArray
    legal_ZS: BoolArray

    @property
    def discount_ZS(self) -> FloatArray:
        """`E[gamma^tau | s, z]`, where the end of the episode counts as 0."""
        return np.asarray(self.next_ZSS.sum(axis=2), dtype=np.float64)

    @property
    def gamma_bar(self) -> float:
        """The largest `E[gamma^tau | s, z]` over legal pairs: the contraction factor of value iteration."""
        return float(self.discount_ZS.max(where=self.legal_ZS, initial=0.0))

    @property
    def reward_bound(self) -> float:
        """R_max of the convergence theorem: the largest `|R(s, z)|` of one *decision*, not of one primitive step."""
        return float(np.abs(self.reward_ZS).max(where=self.legal_ZS, initial=0.0))


@dataclass(frozen=True, eq=False)
class OptionMDP:
    """A finite MDP and options over it.

    Attributes:
        transition_SAS: probability of the next state; rows sum to 1.
        reward_SA: expected reward of a primitive step.
        initiation_OS: where an option may begin.
        policy_OSA: the probabilities of its primitive actions, in every state that it may pass through.
        termination_OS: the probability that it stops on *entering* a state. It always stops where an episode ends.
        gamma: discount per primitive step, in (0, 1).
        terminal_S: states that end an episode; their value is 0, whatever their rows hold.
        start_S: distribution of the first state, over states that are not terminal.
        good_options: the planted options, as indices among the options; empty if none was planted.

    Raises:
        ConfigError: gamma outside (0, 1).
        DataError: shapes that do not fit, or rows that are no distributions.
    """

    transition_SAS: FloatArray
    reward_SA: FloatArray
    initiation_OS: BoolArray
    policy_OSA: FloatArray
    termination_OS: FloatArray
    gamma: float
    terminal_S: BoolArray
    start_S: FloatArray
    good_options: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma < 1.0:
            raise ConfigError(f"gamma={self.gamma}: give a discount in (0, 1)")
        states, primitives, options = self.num_states, self.num_primitives, self.num_options
        shapes = {
            "transition_SAS": (states, primitives, states),
            "reward_SA": (states, primitives),
            "initiation_OS": (options, states),
            "policy_OSA": (options, states, primitives),
            "termination_OS": (options, states),
            "terminal_S": (states,),
            "start_S": (states,),
        }
        for name, shape in shapes.items():
            given = np.shape(getattr(self, name))
            if given != shape:
                raise DataError(f"{name} has shape {given}, expected {shape}")
        for name in ("transition_SAS", "policy_OSA", "start_S"):
            rows = getattr(self, name)
            if (rows < 0.0).any() or not np.allclose(rows.sum(axis=-1), 1.0, rtol=0.0, atol=1e-9):
                raise DataError(f"{name}: rows must be distributions, without negative numbers and with sum 1")
        if not ((self.termination_OS >= 0.0) & (self.termination_OS <= 1.0)).all():
            raise DataError("termination_OS: probabilities must lie in [0, 1]")
        if not np.isfinite(self.reward_SA).all():
            raise DataError("reward_SA: rewards must be finite")
        if self.start_S[self.terminal_S].any():
            raise DataError("start_S: an episode cannot begin in a terminal state")

    @property
    def num_states(self) -> int:
        return int(np.shape(self.reward_SA)[0])

    @property
    def num_primitives(self) -> int:
        return int(np.shape(self.reward_SA)[1])

    @property
    def num_options(self) -> int:
        return int(np.shape(self.termination_OS)[0])

    @property
    def num_actions(self) -> int:
        """Z, primitives and options."""
        return self.num_primitives + self.num_options

    @cached_property
    def model(self) -> ActionModel:
        """The exact model of all Z actions; each option takes one linear solve."""
        live_S = ~self.terminal_S
        rewards, nexts = [*self.reward_SA.T], [*(self.gamma * self.transition_SAS.transpose(1, 0, 2))]
        durations = [*np.ones((self.num_primitives, self.num_states))]
        for policy_SA, stop_S in zip(self.policy_OSA, self.termination_OS, strict=True):
            reward_S, next_SS, duration_S = self._solve_option(policy_SA, np.where(live_S, stop_S, 1.0))
            rewards.append(reward_S)
            nexts.append(next_SS)
            durations.append(duration_S)
        everywhere = np.ones((self.num_primitives, self.num_states), dtype=np.bool_)
        legal_ZS = np.concatenate([everywhere, self.initiation_OS]) & live_S
        return ActionModel(
            reward_ZS=np.where(legal_ZS, rewards, 0.0),
            next_ZSS=np.where(legal_ZS[:, :, None] & live_S, nexts, 0.0),
            duration_ZS=np.where(legal_ZS, durations, 0.0),
            legal_ZS=legal_ZS,
        )

    def _solve_option(self, policy_SA: FloatArray, stop_S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """R, D and the mean duration from every state.

        With C the transitions after which the option continues, `R = r + gamma C R`; D and the duration likewise.
        """
        step_SS = np.einsum("sa,sat->st", policy_SA, self.transition_SAS)
        continue_SS = step_SS * (1.0 - stop_S)
        wanted = np.column_stack([(policy_SA * self.reward_SA).sum(axis=1), self.gamma * step_SS * stop_S])
        eye = np.eye(self.num_states)
        solved = np.linalg.solve(eye - self.gamma * continue_SS, wanted)
        # An option may never stop if it can reach a state from which no stopping state can be reached.
        reach_SS = (continue_SS > 0.0) | np.eye(self.num_states, dtype=np.bool_)
        for _ in range(self.num_states.bit_length()):
            reach_SS = reach_SS @ reach_SS
        stops_S = (step_SS * stop_S).sum(axis=1) > 0.0
        forever_S = reach_SS @ ~(reach_SS @ stops_S)
        finite_SS = np.where(forever_S[:, None], 0.0, continue_SS)
        duration_S = np.where(forever_S, np.inf, np.linalg.solve(eye - finite_SS, np.ones(self.num_states)))
        return solved[:, 0], solved[:, 1:], duration_S

    def action_indices(self, actions: Actions = "both") -> IntArray:
        """Return the actions of a set, as ascending indices among all Z.

        Raises:
            UnknownNameError: no such name.
            ConfigError: an empty set, an index out of range, or an index given twice.
        """
        if isinstance(actions, str):
            sets = {
                "primitives": np.arange(self.num_primitives),
                "options": np.arange(self.num_primitives, self.num_actions),
                "both": np.arange(self.num_actions),
            }
            if actions not in sets:
                raise UnknownNameError("action set", actions, sets)
            indices = sets[actions]
        else:
            indices = np.sort(np.asarray(actions, dtype=np.int64))
        if len(indices) == 0:
            raise ConfigError(f"actions={actions!r} holds no action: give at least one")
        if indices[0] < 0 or indices[-1] >= self.num_actions or len(np.unique(indices)) < len(indices):
            raise ConfigError(f"actions={actions!r}: give distinct indices from 0 to {self.num_actions - 1}")
        return indices

    def restrict(self, actions: Actions = "both") -> ActionModel:
        """Return the exact model of these actions only."""
        indices, model = self.action_indices(actions), self.model
        return ActionModel(
            reward_ZS=model.reward_ZS[indices],
            next_ZSS=model.next_ZSS[indices],
            duration_ZS=model.duration_ZS[indices],
            legal_ZS=model.legal_ZS[indices],
        )

    def gamma_bar(self, actions: Actions = "both") -> float:
        """`sup E[gamma^tau | s, z]` over legal pairs of a state and one of these actions; in [0, 1)."""
        return self.restrict(actions).gamma_bar
