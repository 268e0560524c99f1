"""Many `TraceInference-v0` at once, as arrays: one compiled pass over all environments per step.

Shape letters: see CONTRIBUTING.md (E environments, B of them selected, N lines, M traces, K latents, D width of an
observation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ra3gym.abstractions.inference.posterior import BoolArray, FloatArray
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem
from ra3gym.envs.batched_episodes import BatchedEnv, Info, Selection
from ra3gym.envs.keywords import check_vector, config_from
from ra3gym.envs.trace_inference.env import Observation, TraceInferenceEnv, observation_space, render_path
from ra3gym.envs.trace_inference.kernels import (
    DRAWN,
    Int8Array,
    State,
    begin_chosen,
    make_tables,
    observe_all,
    step_all,
)
from ra3gym.envs.trace_inference.problem import TraceInferenceConfig, load_problem, trace_index


class TraceInferenceVectorEnv(BatchedEnv):
    """`TraceInferenceEnv`, `num_envs` times, over one problem.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. See `BatchedEnv` for seeds, options of `reset` (here `trace_id` and `reset_mask`), autoreset modes
    and masks.

    Args:
        problem: the first field of `TraceInferenceConfig`.
        num_envs: E, at least 1.
        autoreset_mode: see `BatchedEnv`.
        **keywords: the other fields of `TraceInferenceConfig`.

    Raises:
        ConfigError, DataError, ModelError, UnknownNameError: as `TraceInferenceEnv`; `ConfigError` also for a number
            of environments below 1 or an unknown mode.
    """

    config_type = TraceInferenceConfig
    metadata: dict[str, Any] = {**TraceInferenceEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        problem: InferenceProblem | None = None,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **keywords: Any,
    ) -> None:
        self.config = config_from(TraceInferenceConfig, self, (problem,), keywords)
        mode = check_vector(num_envs, autoreset_mode)
        self.problem = load_problem(self.config)
        super().__init__(
            num_envs,
            gym.spaces.Discrete(self.problem.num_latents),
            observation_space(self.problem, self.config.observation),
            mode=mode,
            render_mode=self.config.render_mode,
        )
        self._index = {trace_id: m for m, trace_id in enumerate(self.problem.trace_ids)}
        self._tables = make_tables(self.problem)
        self._name_M = np.array(self.problem.trace_ids, dtype=object)
        self._text_N = _line_names(self.problem)
        self._state = State.blank(num_envs, int(np.diff(self.problem.chain.offsets).max()))

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
        chosen_E, new_E, pinned_E = self._prepare_reset(
            seed, options or {}, "trace_id", lambda trace_id: trace_index(self._index, trace_id)
        )
        self._state.cursor_E[new_E] = DRAWN
        self._redraw()
        obs_ED, mask_EK = self._blank()
        begin_chosen(self._tables, self._state, chosen_E, pinned_E)
        observe_all(self._tables, self._state, obs_ED, mask_EK)
        self._has_begun = True
        info: Info = {}
        self._add_current(info, Selection.of_mask(chosen_E), mask_EK)
        return self._observation_of(obs_ED, mask_EK), info

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Observation, FloatArray, BoolArray, BoolArray, Info]:
        """Give the current line of each environment its latent. Illegal actions are reported in the infos.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action for each environment.
        """
        state, E = self._state, self.num_envs
        action_E = self._checked_actions(actions, state.ended_E)
        began_E = state.ended_E.copy()
        reward_E, illegal_E, terminated_E = np.empty(E), np.empty(E, dtype=np.bool_), np.empty(E, dtype=np.bool_)
        obs_ED, mask_EK = self._blank()
        self._redraw()
        same_step = self._mode is AutoresetMode.SAME_STEP
        results = obs_ED, mask_EK, reward_E, illegal_E, terminated_E
        step_all(self._tables, state, action_E, float(self.config.floor), same_step, *results)

        info: Info = {}
        if ended := Selection.of_mask(terminated_E):
            if same_step:
                self._add_final(info, ended, illegal_E)
            else:
                ended.add_to(info, self._outcome(ended))
        self._add_current(info, Selection.of_all(E), mask_EK)
        stepped_E = ~(terminated_E if same_step else began_E)
        taken = {"duration": {"lines": stepped_E.astype(np.int64)}, "illegal_action": illegal_E & stepped_E}
        Selection.of_full_columns(stepped_E).add_to(info, taken)
        return self._observation_of(obs_ED, mask_EK), reward_E, terminated_E, np.zeros(E, dtype=np.bool_), info

    def action_masks(self) -> BoolArray:
        """Return which latents are legal now, bool `(E, K)`."""
        obs_ED, mask_EK = self._blank()
        observe_all(self._tables, self._state, obs_ED, mask_EK)
        return mask_EK.astype(np.bool_)

    def render(self) -> tuple[Any, ...] | None:
        """Return what the single environments render, one for each."""
        if self.render_mode is None:
            return None
        state, offsets = self._state, self.problem.chain.offsets
        shown = []
        for e in range(self.num_envs):
            m = int(state.trace_E[e])
            start, end = int(offsets[m]), int(offsets[m + 1])
            done = (end if state.line_E[e] == len(self._text_N) - 1 else int(state.line_E[e])) - start
            path = state.path_ET[e, :done].tolist()
            shown.append(render_path(self.render_mode, self.problem, m, path, float(state.log_joint_E[e])))
        return tuple(shown)

    def _redraw(self) -> None:
        """Draw traces ahead for environments that have used theirs up. A step or reset takes at most one."""
        state = self._state
        for e in np.flatnonzero(state.cursor_E == DRAWN).tolist():
            state.drawn_traces[e] = self._rngs[e].integers(len(self._index), size=DRAWN)
            state.cursor_E[e] = 0

    def _blank(self) -> tuple[Float32Array, Int8Array]:
        E = self.num_envs
        return (
            np.empty((E, self.problem.observation_size), dtype=np.float32),
            np.empty((E, self.problem.num_latents), dtype=np.int8),
        )

    def _observation_of(self, obs_ED: Float32Array, mask_EK: Int8Array) -> Observation:
        return obs_ED if self.config.observation == "features" else {"obs": obs_ED, "mask": mask_EK.copy()}

    def _add_current(self, info: Info, selected: Selection, mask_EK: Int8Array) -> None:
        """Add the infos of the current line."""
        state, index_B = self._state, selected.index_B
        selected.add_to(
            info,
            {
                "trace_id": self._name_M[state.trace_E[index_B]],
                "line": self._text_N[state.line_E[index_B]],
                "log_joint": state.log_joint_E[index_B].copy(),
                "action_mask": mask_EK[index_B],
            },
        )

    def _outcome(self, selected: Selection) -> Info:
        """Return the infos of the episodes that have just ended, as columns of B."""
        evidence_B = self.problem.log_evidence_M[self._state.last_trace_E[selected.index_B]]
        return {"evidence": evidence_B, "gap": evidence_B - self._state.last_log_joint_E[selected.index_B]}

    def _add_final(self, info: Info, selected: Selection, illegal_E: BoolArray) -> None:
        """Add `final_obs` and `final_info` of environments that began another trace within this step."""
        state, index_B = self._state, selected.index_B
        obs_BD = self.problem.end_observations(state.last_latent_E[index_B])
        mask_BK = np.ones((len(obs_BD), self.problem.num_latents), dtype=np.int8)
        final: Info = {}
        selected.add_to(
            final,
            {
                "trace_id": self._name_M[state.last_trace_E[index_B]],
                "line": np.repeat(self._text_N[-1:], len(obs_BD)),
                "log_joint": state.last_log_joint_E[index_B],
                "action_mask": mask_BK,
            }
            | {"duration": {"lines": np.ones(len(obs_BD), dtype=np.int64)}, "illegal_action": illegal_E[index_B]}
            | self._outcome(selected),
        )
        selected.add_final_to(info, self._observation_of(obs_BD, mask_BK), final)


def _line_names(problem: InferenceProblem) -> npt.NDArray[Any]:
    """Return what `info["line"]` says of each line, and then what it says after a last line."""
    if problem.line_texts is None:
        index_N = np.arange(len(problem.trace_N)) - problem.chain.offsets[problem.trace_N]
        return np.append(index_N, -1)
    return np.array([*problem.line_texts, ""], dtype=object)
