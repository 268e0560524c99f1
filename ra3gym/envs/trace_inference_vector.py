"""Many `TraceInference-v0` at once, as arrays: one compiled pass over all environments per step.

Shape suffixes: E environments, W of them concerned (`_Where`), N lines in all, M traces, K latents, O observed numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ra3gym.abstractions.inference_problem import Float32Array, InferenceProblem
from ra3gym.abstractions.posterior import BoolArray, FloatArray, IntArray
from ra3gym.envs.trace_inference import (
    Observation,
    ObservationKind,
    TraceInferenceEnv,
    check_options,
    observation_space,
    refuse_impossible,
    refuse_unknown_options,
    show_path,
    trace_index,
)
from ra3gym.envs.trace_inference_kernels import BLOCK, Int8Array, State, begin_chosen, look, make_tables, step_all
from ra3gym.envs.trace_problem import load_problem
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace

Info = dict[str, Any]


class TraceInferenceVectorEnv(gym.vector.VectorEnv[Observation, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`TraceInferenceEnv`, `num_envs` times, over one problem.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. Environment i has a generator of its own, seeded with `seed + i`, so its traces do not depend on
    `num_envs`. Returned arrays are new in each call and may be kept.

    `reset` takes an int, a list of one seed (or `None`) per environment, or `None`. Its options are `trace_id`, one for
    all or a sequence of one per environment, for the episodes it begins; and `reset_mask`, bool `(E,)`: which
    environments to reset. `action_masks()` gives all masks, bool `(E, K)`.

    Args:
        problem: see `TraceInferenceEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        autoreset_mode: NEXT_STEP (default): the step behind an episode's last ignores the action and begins the next
            episode. SAME_STEP: the last step returns the next episode's first observation, and the last one as
            `info["final_obs"]` and `info["final_info"]`. DISABLED: reset ended environments with `reset_mask`.

    Raises:
        ConfigError, DataError, ModelError, UnknownNameError: as `TraceInferenceEnv`; `ConfigError` also for a number
            of environments below 1 or an unknown mode.
    """

    metadata: dict[str, Any] = {**TraceInferenceEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        problem: InferenceProblem | None = None,
        num_envs: int = 1,
        *,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        traces: str | Sequence[ExpertTrace] = "idioms",
        num_traces: int | None = 32,
        alpha: float = 0.7,
        switch_penalty: float | None = None,
        context_lines: int | None = None,
        floor: float = -100.0,
        observation: ObservationKind = "features",
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        check_options(floor, observation, render_mode, self.metadata["render_modes"])
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs} must be at least 1")
        self._mode = _autoreset_mode(autoreset_mode)
        self.problem = problem or load_problem(
            model=model,
            traces=traces,
            num_traces=num_traces,
            alpha=alpha,
            switch_penalty=switch_penalty,
            context_lines=context_lines,
            device=device,
            dtype=dtype,
        )
        refuse_impossible(self.problem)
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self.render_mode = render_mode
        self.num_envs = num_envs
        self._floor, self._observation = float(floor), observation
        self.single_action_space = gym.spaces.Discrete(self.problem.num_latents)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space(self.problem, observation)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._index = {trace_id: m for m, trace_id in enumerate(self.problem.trace_ids)}
        self._tables = make_tables(self.problem)
        self._name_M = np.array(self.problem.trace_ids, dtype=object)
        self._text_N = _line_names(self.problem)
        self._state = State.blank(num_envs, int(np.diff(self.problem.chain.offsets).max()))
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._begun = False

    @property
    def trace_ids(self) -> list[str]:
        """The ids that `reset(options={"trace_id": ...})` takes."""
        return list(self.problem.trace_ids)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin episodes in all environments, or in those of `options["reset_mask"]`.

        Raises:
            ConfigError: an unknown option, or not one seed or trace per environment.
            UnknownNameError: no such trace.
        """
        options = options or {}
        refuse_unknown_options(options, ("trace_id", "reset_mask"))
        chosen_E = self._reset_mask(options)
        pinned_E = self._pinned(options)
        self._seed(seed, chosen_E)
        obs_EO, mask_EK = self._blank()
        begin_chosen(self._tables, self._state, chosen_E, pinned_E)
        look(self._tables, self._state, obs_EO, mask_EK)
        self._begun = True
        info: Info = {}
        self._add_current(info, _Where.of(chosen_E), mask_EK)
        return self._observation_of(obs_EO, mask_EK), info

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Observation, FloatArray, BoolArray, BoolArray, Info]:
        """Give the line ahead in each environment its latent.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: an action that is no latent, in an environment that reads it.
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
        reward_E, terminated_E = np.empty(E), np.empty(E, dtype=np.bool_)
        obs_EO, mask_EK = self._blank()
        self._redraw()
        same_step = self._mode is AutoresetMode.SAME_STEP
        wrong = step_all(self._tables, state, action_E, self._floor, same_step, obs_EO, mask_EK, reward_E, terminated_E)
        if wrong >= 0:
            K = self.problem.num_latents
            raise gym.error.InvalidAction(
                f"action {action_E[wrong]} of environment {wrong} is no latent: give 0 to {K - 1}"
            )

        info: Info = {}
        ended = _Where.of(terminated_E)
        if len(ended.rows_W):
            if same_step:
                self._add_final(info, ended)
            else:
                self._add_outcome(info, ended)
        self._add_current(info, _Where.everywhere(E), mask_EK)
        stepped_E = ~(terminated_E if same_step else began_E)
        if stepped_E.any():
            _add_duration(info, stepped_E)
        return self._observation_of(obs_EO, mask_EK), reward_E, terminated_E, np.zeros(E, dtype=np.bool_), info

    def action_masks(self) -> BoolArray:
        """bool `(E, K)`: which latents are legal now."""
        obs_EO, mask_EK = self._blank()
        look(self._tables, self._state, obs_EO, mask_EK)
        return mask_EK.astype(np.bool_)

    def render(self) -> tuple[str, ...] | None:
        """The traces with the latents chosen so far, for `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        state, offsets = self._state, self.problem.chain.offsets
        shown = []
        for e in range(self.num_envs):
            m = int(state.trace_E[e])
            start, end = int(offsets[m]), int(offsets[m + 1])
            done = (end if state.line_E[e] == len(self._text_N) - 1 else int(state.line_E[e])) - start
            path = state.path_ET[e, :done].tolist()
            shown.append(show_path(self.problem, m, path, float(state.log_joint_E[e])))
        return tuple(shown)

    # Random traces

    def _seed(self, seed: int | Sequence[int | None] | None, chosen_E: BoolArray) -> None:
        """New generators where a seed is given, or where there was none; only in the chosen environments."""
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            seeds: list[int | None] = [None if seed is None else int(seed) + e for e in range(self.num_envs)]
        else:
            seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ConfigError(
                f"{len(seeds)} seeds for {self.num_envs} environments: give one for each, or a single int"
            )
        for e in np.flatnonzero(chosen_E).tolist():
            if seeds[e] is not None or self._rngs[e] is None:
                self._rngs[e], _ = seeding.np_random(seeds[e])
                self._state.cursor_E[e] = BLOCK
        self._redraw()

    def _redraw(self) -> None:
        """Draw traces ahead for environments that have used theirs up; a step or reset takes one at most."""
        state = self._state
        for e in np.flatnonzero(state.cursor_E == BLOCK).tolist():
            rng = self._rngs[e]
            if rng is not None:
                state.drawn_EB[e] = rng.integers(len(self._index), size=BLOCK)
                state.cursor_E[e] = 0

    def _pinned(self, options: Mapping[str, Any]) -> IntArray:
        """The trace that each environment is to begin; -1 for a random one."""
        if "trace_id" not in options:
            return np.full(self.num_envs, -1)
        wanted = options["trace_id"]
        if isinstance(wanted, str) or not isinstance(wanted, (Sequence, np.ndarray)):
            return np.full(self.num_envs, trace_index(self._index, wanted))
        if len(wanted) != self.num_envs:
            raise ConfigError(f"{len(wanted)} trace ids for {self.num_envs} environments: give one for each, or one id")
        return np.array([trace_index(self._index, one) for one in wanted])

    def _reset_mask(self, options: Mapping[str, Any]) -> BoolArray:
        if "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        chosen_E = np.asarray(options["reset_mask"])
        if chosen_E.shape != (self.num_envs,) or chosen_E.dtype != np.bool_ or not chosen_E.any():
            raise ConfigError(f"reset_mask must be bool of shape ({self.num_envs},), with at least one True")
        if not (self._begun or chosen_E.all()):
            raise gym.error.ResetNeeded("no episode has begun: the first reset() takes all environments")
        return chosen_E

    # Returned data

    def _blank(self) -> tuple[Float32Array, Int8Array]:
        E = self.num_envs
        return (
            np.empty((E, self.problem.observation_size), dtype=np.float32),
            np.empty((E, self.problem.num_latents), dtype=np.int8),
        )

    def _observation_of(self, obs_EO: Float32Array, mask_EK: Int8Array) -> Observation:
        return obs_EO if self._observation == "features" else {"obs": obs_EO, "mask": mask_EK.copy()}

    def _add_current(self, info: Info, where: _Where, mask_EK: Int8Array) -> None:
        """What holds of the line ahead."""
        state, rows_W = self._state, where.rows_W
        where.put(info, "trace_id", self._name_M[state.trace_E[rows_W]])
        where.put(info, "line", self._text_N[state.line_E[rows_W]])
        where.put(info, "log_joint", state.log_joint_E[rows_W].copy())
        where.put(info, "action_mask", mask_EK[rows_W])

    def _add_outcome(self, info: Info, where: _Where) -> None:
        """How the episodes that have just ended went."""
        evidence_W = self.problem.log_evidence_M[self._state.last_trace_E[where.rows_W]]
        where.put(info, "evidence", evidence_W)
        where.put(info, "gap", evidence_W - self._state.last_log_joint_E[where.rows_W])

    def _add_final(self, info: Info, where: _Where) -> None:
        """`final_obs` and `final_info` of environments that have gone on to another trace within this step."""
        state, rows_W = self._state, where.rows_W
        obs_WO = self.problem.end_observations(state.last_latent_E[rows_W])
        mask_WK = np.ones((len(obs_WO), self.problem.num_latents), dtype=np.int8)
        final_obs_E = np.full(self.num_envs, None, dtype=object)
        if self._observation == "features":
            for e, obs_O in zip(rows_W.tolist(), obs_WO, strict=True):
                final_obs_E[e] = obs_O
        else:
            for e, obs_O, mask_K in zip(rows_W.tolist(), obs_WO, mask_WK.copy(), strict=True):
                final_obs_E[e] = {"obs": obs_O, "mask": mask_K}
        final: Info = {}
        where.put(final, "trace_id", self._name_M[state.last_trace_E[rows_W]])
        where.put(final, "line", np.repeat(self._text_N[-1:], len(obs_WO)))
        where.put(final, "log_joint", state.last_log_joint_E[rows_W])
        where.put(final, "action_mask", mask_WK)
        _add_duration(final, where.mask_E)
        self._add_outcome(final, where)
        info["final_obs"], info["_final_obs"] = final_obs_E, where.mask_E.copy()
        info["final_info"], info["_final_info"] = final, where.mask_E.copy()


class _Where(NamedTuple):
    """Some of the environments: as an index that picks them, and as a mask."""

    rows_W: Any
    mask_E: BoolArray

    @classmethod
    def of(cls, mask_E: BoolArray) -> _Where:
        return cls(np.flatnonzero(mask_E), mask_E)

    @classmethod
    def everywhere(cls, num_envs: int) -> _Where:
        return cls(slice(None), np.ones(num_envs, dtype=np.bool_))

    def put(self, info: Info, key: str, values_W: npt.NDArray[Any]) -> None:
        """Set `info[key]`, an array over all environments, and `info["_" + key]`, where it holds; Gymnasium's way.

        `values_W` must be new: it becomes the caller's.
        """
        values_E = values_W
        if not isinstance(self.rows_W, slice):
            nothing = None if values_W.dtype == object else 0
            values_E = np.full((len(self.mask_E), *values_W.shape[1:]), nothing, dtype=values_W.dtype)
            values_E[self.rows_W] = values_W
        info[key], info[f"_{key}"] = values_E, self.mask_E.copy()


def _add_duration(info: Info, stepped_E: BoolArray) -> None:
    info["duration"] = {"lines": stepped_E.astype(np.int64), "_lines": stepped_E.copy()}
    info["_duration"] = stepped_E.copy()


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ConfigError(f"autoreset_mode={mode!r} is not supported; use one of {known}") from None


def _line_names(problem: InferenceProblem) -> npt.NDArray[Any]:
    """What `info["line"]` says of each line, and of what is behind a last one."""
    if problem.line_texts is None:
        index_N = np.arange(len(problem.trace_N)) - problem.chain.offsets[problem.trace_N]
        return np.append(index_N, -1)
    return np.array([*problem.line_texts, ""], dtype=object)
