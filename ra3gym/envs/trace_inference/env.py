"""`ra3gym/TraceInference-v0`: walk through an expert trace, choose a latent for each line, be paid in nats.

Shape letters: see CONTRIBUTING.md (F features of a line, K latents).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference.problem import NO_LATENT, InferenceProblem
from ra3gym.envs.colored_text import Run, ansi_text
from ra3gym.envs.keywords import RENDER_MODES, config_from, refuse_unknown_options
from ra3gym.envs.trace_inference.problem import ObservationKind, TraceInferenceConfig, load_problem, trace_index

Observation: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]

OBSERVATION_BOUND = 1e4
"""Bound of the observation space if no feature exceeds it, so that equal models have equal spaces."""


class TraceInferenceEnv(gym.Env[Observation, np.int64]):
    """The E-step as an environment: infer the latents of an expert trace, line by line.

    **Actions.** `Discrete(K)`: the latent of the current line. A latent is masked if the line is impossible under it
    (its emission or its prior is `-inf`). The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool)
    and in the `"dict"` observation. If no latent is legal (after an illegal choice, under a prior with hard zeros), and
    after the last line, the mask is all ones.

    *An illegal action* (masked, or out of range) still moves on to the next line. It pays the floor, makes `log_joint`
    `-inf`, and is reported as `info["illegal_action"]`. A masked latent then counts as the previous latent of the next
    line. After an out-of-range action the next line has no previous latent, like a first line.

    **Observations.** `"features"` (default): float32 `(F + K + 2,)`, as `InferenceProblem.observations` gives them:
    features of the prefix and the current line, the previous latent (one-hot; zeros if there is none), and the
    position. After the last line the features are zeros and the position is (1, 0). `"dict"`: a flat Dict of that as
    `"obs"`, and `"mask"`, int8 `(K,)`.

    **Reward.** `log p(line | latent) + log p(latent | previous latent)` in nats, raised to at least `floor`, so that
    learners never meet `-inf`. The rewards of a path sum to its log joint probability with the trace, unless a reward
    was raised to the floor.

    **Episode.** One trace: `reset` draws it with `self.np_random`, or takes that of `options={"trace_id": ...}`. It
    terminates after the last line and never truncates.

    **Info.** Always `trace_id`; `line`, the current line, as text where the problem has texts (`""` after the last),
    else as its index in the trace (-1 after the last); `log_joint`, the sum so far in nats, *without* the floor (`-inf`
    after an illegal choice); `action_mask`. After a step also `duration`, `{"lines": 1}`, and `illegal_action`. At the
    end also `evidence`, the trace's log evidence, and `gap = evidence - log_joint`, never negative.

    `log_joint` is the temporal ELBO of a distribution q that puts all its mass on this path. A stochastic q also earns
    its entropy: the expected `gap` less the entropy of q is the gap of its ELBO. So add `-log q(action)` to each
    reward, that is, entropy at temperature 1; then the optimum *is* the exact posterior, and its value the log
    evidence.

    The keywords are the fields of `TraceInferenceConfig`.

    Raises:
        ConfigError: a keyword outside its choices.
        DataError: traces that cannot be used, or a trace that is impossible under every path.
        ModelError: the model cannot be loaded, or knows no latents.
        UnknownNameError: no such keyword or set of tasks; in `reset`, no such trace.
    """

    config_type = TraceInferenceConfig
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(self, problem: InferenceProblem | None = None, **keywords: Any) -> None:
        self.config = config_from(TraceInferenceConfig, self, (problem,), keywords)
        self.problem = load_problem(self.config)
        self.render_mode = self.config.render_mode
        self.action_space = gym.spaces.Discrete(self.problem.num_latents)
        self.observation_space = observation_space(self.problem, self.config.observation)

        self._index = {trace_id: m for m, trace_id in enumerate(self.problem.trace_ids)}
        self._trace = 0
        self._line = self._end = 0
        self._path: list[int] = []
        self._log_joint = 0.0
        self._has_begun = False

    @property
    def trace_ids(self) -> list[str]:
        """The ids that `reset(options={"trace_id": ...})` takes."""
        return list(self.problem.trace_ids)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a random trace, or that of `options={"trace_id": ...}`; `UnknownNameError` if there is none."""
        super().reset(seed=seed)
        options = options or {}
        refuse_unknown_options(options, ("trace_id",))
        if "trace_id" in options:
            self._trace = trace_index(self._index, options["trace_id"])
        else:
            self._trace = int(self.np_random.integers(len(self._index)))
        self._line, self._end = map(int, self.problem.chain.offsets[self._trace : self._trace + 2])
        self._path = []
        self._log_joint = 0.0
        self._has_begun = True
        self._update_actions()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Give the current line its latent; `gymnasium.error.ResetNeeded` if no episode is running."""
        if not self._has_begun or self._line == self._end:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        latent = int(action)
        if not 0 <= latent < self.problem.num_latents:
            latent = NO_LATENT
        gain = -math.inf if latent == NO_LATENT else float(self._reward_K[latent])
        self._log_joint += gain
        self._path.append(latent)
        self._line += 1
        self._update_actions()
        terminated = self._line == self._end
        info = self._info() | {"duration": {"lines": 1}, "illegal_action": gain == -math.inf}
        if terminated:
            evidence = float(self.problem.log_evidence_M[self._trace])
            info |= {"evidence": evidence, "gap": evidence - self._log_joint}
        return self._observe(), max(gain, float(self.config.floor)), terminated, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which latents are legal for the current line, bool `(K,)`, as sb3-contrib asks for it."""
        return self._legal_K.copy()

    def render(self) -> Any:
        """Return the trace with the latents chosen so far, in their colors; kinds as in `CodeEnv.render`."""
        if self.render_mode is None:
            return None
        return render_path(self.render_mode, self.problem, self._trace, self._path, self._log_joint)

    @property
    def _previous(self) -> int:
        return self._path[-1] if self._path else NO_LATENT

    def _update_actions(self) -> None:
        """Find out what each latent would pay now, and whether it is legal."""
        if self._line == self._end:
            self._legal_K = np.ones(self.problem.num_latents, dtype=np.bool_)
            return
        self._reward_K = self.problem.rewards(np.array([self._line]), np.array([self._previous]))[0]
        self._legal_K = self._reward_K > -np.inf
        if not self._legal_K.any():
            self._legal_K[:] = True

    def _observe(self) -> Observation:
        previous = np.array([self._previous])
        if self._line == self._end:
            features: npt.NDArray[np.float32] = self.problem.end_observations(previous)[0]
        else:
            features = self.problem.observations(np.array([self._line]), previous)[0]
        if self.config.observation == "features":
            return features
        return {"obs": features, "mask": self._legal_K.astype(np.int8)}

    def _info(self) -> dict[str, Any]:
        texts, ended = self.problem.line_texts, self._line == self._end
        if texts is None:
            line: str | int = -1 if ended else len(self._path)
        else:
            line = "" if ended else texts[self._line]
        return {
            "trace_id": self.problem.trace_ids[self._trace],
            "line": line,
            "log_joint": self._log_joint,
            "action_mask": self._legal_K.astype(np.int8),
        }


def observation_space(problem: InferenceProblem, observation: ObservationKind) -> gym.spaces.Space[Any]:
    """Return the space of one environment's observations."""
    largest = float(np.abs(problem.feature_NF).max(initial=0.0))
    bound = OBSERVATION_BOUND if largest <= OBSERVATION_BOUND else 10.0 ** math.ceil(math.log10(largest))
    features = gym.spaces.Box(-bound, bound, (problem.observation_size,), np.float32)
    if observation == "features":
        return features
    return gym.spaces.Dict({"obs": features, "mask": gym.spaces.Box(0, 1, (problem.num_latents,), np.int8)})


def render_path(render_mode: str, problem: InferenceProblem, trace: int, path: Sequence[int], log_joint: float) -> Any:
    """Return a trace under a line of status, as a picture ("rgb_array") or text; lines have their latents' colors.

    In the text each line has its latent before it: "?" for an action out of range, a dot for a line without an action.
    """
    start, end = map(int, problem.chain.offsets[trace : trace + 2])
    texts = [f"line {t}" for t in range(end - start)] if problem.line_texts is None else problem.line_texts[start:end]
    status = f"{problem.trace_ids[trace]}: {len(path)} of {end - start} lines, log joint {log_joint:.2f} nats"
    if len(path) == end - start:
        status += f", gap {problem.log_evidence_M[trace] - log_joint:.2f}"
    if render_mode == "rgb_array":
        from ra3gym.envs.frames import program_frame

        done = [Run(text.rstrip() + "\n", latent) for text, latent in zip(texts, path, strict=False)]
        ahead = [Run(text.rstrip() + "\n", faint=True) for text in texts[len(path) :]]
        return program_frame(status, done + ahead, focus=len(path))
    num_left = end - start - len(path)
    marks = ["?" if latent == NO_LATENT else f"z{latent}" for latent in path] + ["."] * num_left
    width = len(f"z{problem.num_latents - 1}")
    runs = [Run(f"# {status}\n")]
    for mark, text, latent in zip(marks, texts, [*path, *[NO_LATENT] * num_left], strict=True):
        runs += [Run(f"{mark:>{width}} | "), Run(text.rstrip(), latent), Run("\n")]
    return ansi_text(runs)
