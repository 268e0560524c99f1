"""`ra3gym/TraceInference-v0`: walk through an expert trace, choose a latent for each line, be paid in nats."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference.problem import NO_LATENT, InferenceProblem
from ra3gym.envs.coloured_text import Run, ansi_text
from ra3gym.envs.options import check_choice, check_render_mode, refuse_unknown_options
from ra3gym.envs.trace_inference.problem import load_problem
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace

Observation: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
ObservationKind = Literal["features", "dict"]

OBSERVATION_BOUND = 1e4
"""Bound of the observation space where the features stay below it, so that equal models have equal spaces."""


class TraceInferenceEnv(gym.Env[Observation, np.int64]):
    """The E-step as an environment: infer the latents of an expert trace, line by line.

    **Actions.** `Discrete(K)`: the latent of the line ahead. Masked is a latent under which the line is impossible
    (emission or prior of `-inf`). The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the
    `"dict"` observation. *An illegal action* (masked, or out of range) uses up the line: it pays the floor, makes
    `log_joint` `-inf`, and is reported as `info["illegal_action"]`. A masked latent is the latent behind from then on;
    what is out of range is no latent, so that none is behind the next line, as at the first one. Where nothing is legal
    (a prior with hard zeros, after an illegal choice) and behind the last line, the mask is open.

    **Observations.** `"features"` (default): float32 `(F + K + 2,)`, as `InferenceProblem.observations` has it:
    features of the prefix and the line ahead, the latent behind (one-hot; zeros where there is none), and position.
    Behind the last line the features are zeros and the position is (1, 0). `"dict"`: a flat Dict of that as `"obs"`,
    and `"mask"`, int8 `(K,)`.

    **Reward.** `log p(line | z) + log p(z | latent behind)` in nats, raised to at least `floor`, so that learners never
    meet `-inf`. Rewards of a path sum to its log joint probability with the trace, unless the floor was met.

    **Episode.** One trace: `reset` draws it with `self.np_random`, or takes that of `options={"trace_id": ...}`. It
    terminates behind the last line and never truncates.

    **Info.** Always `trace_id`; `line`, the one ahead, as text where the problem has texts (`""` behind the last), else
    its index in the trace (-1); `log_joint`, the sum so far in nats, *without* the floor (`-inf` after an illegal
    choice); `action_mask`. After a step also `duration`, `{"lines": 1}`, and `illegal_action`. At the end also
    `evidence`, the trace's log evidence, and `gap = evidence - log_joint`, never negative.

    `log_joint` is the temporal ELBO of a q that is sure of this path. A stochastic q also earns its entropy: its
    expected `gap` less its entropy is the gap of its ELBO. So add `-log q(action)` to each reward, that is, entropy at
    temperature 1, and the optimum *is* the exact posterior, its value the log evidence.

    Args:
        problem: a problem of your own (`ra3gym.abstractions.inference.problem`); what follows up to `context_lines`,
            `device` and `dtype` are then not read. Without one, a model scores expert traces (`load_problem`).
        model: "embedded" (the checkpoint in the package), a Hugging Face folder or hub id, or a `LoadedModel`; its
            latent tokens are the actions.
        traces: "idioms", the embedded domain's training traces; another task set for `ra3gym.tasks.load_tasks`, whose
            canonical solutions are the traces; or a sequence of `ExpertTrace`.
        num_traces: at most so many, from the first; 32 take a few seconds with the embedded model. `None` for all of a
            sequence or task set.
        alpha: stickiness of the prior, in (0, 1).
        switch_penalty: nats per switch; when given, it stands in for `alpha` (`StickyPrior.from_switch_penalty`).
        context_lines: how many lines ahead of a line the emission sees; `None` for all of them.
        floor: the least reward of a step in nats; finite. -100 is below what lines of code cost under any latent.
        observation: see above.
        device: where a model given by name is loaded.
        dtype: its precision, as `ra3gym.lm.load` names it.
        render_mode: `None`, "ansi" or "rgb_array".

    Raises:
        ConfigError: an option outside its choices.
        DataError: traces that cannot be used, or one that is impossible under every path.
        ModelError: the model cannot be loaded, or knows no latents.
        UnknownNameError: no such set of tasks; in `reset`, no such trace.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        problem: InferenceProblem | None = None,
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
    ) -> None:
        check_options(floor, observation, render_mode, self.metadata["render_modes"])
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
        self.render_mode = render_mode
        self._floor, self._observation = float(floor), observation
        self.action_space = gym.spaces.Discrete(self.problem.num_latents)
        self.observation_space = observation_space(self.problem, observation)

        self._index = {trace_id: m for m, trace_id in enumerate(self.problem.trace_ids)}
        self._trace = 0
        self._line = self._end = 0
        self._path: list[int] = []
        self._log_joint = 0.0
        self._begun = False

    @property
    def trace_ids(self) -> list[str]:
        """The ids that `reset(options={"trace_id": ...})` takes."""
        return list(self.problem.trace_ids)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a trace: a random one, or that of `options={"trace_id": ...}`; `UnknownNameError` if there is none."""
        super().reset(seed=seed)
        self._trace = self._pick(options or {})
        self._line, self._end = map(int, self.problem.chain.offsets[self._trace : self._trace + 2])
        self._path = []
        self._log_joint = 0.0
        self._begun = True
        self._update_actions()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Give the line ahead its latent; `gymnasium.error.ResetNeeded` when no episode is under way."""
        if not self._begun or self._line == self._end:
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
        return self._observe(), max(gain, self._floor), terminated, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(K,)`: which latents are legal for the line ahead; the dialect of sb3-contrib."""
        return self._legal_K.copy()

    def render(self) -> Any:
        """The trace with the latents chosen so far, in their colours; kinds as `CodeEnv.render` has them."""
        if self.render_mode is None:
            return None
        return render_path(self.render_mode, self.problem, self._trace, self._path, self._log_joint)

    @property
    def _previous(self) -> int:
        return self._path[-1] if self._path else NO_LATENT

    def _pick(self, options: Mapping[str, Any]) -> int:
        """The index of the trace to begin."""
        refuse_unknown_options(options, ("trace_id",))
        if "trace_id" not in options:
            return int(self.np_random.integers(len(self._index)))
        return trace_index(self._index, options["trace_id"])

    def _update_actions(self) -> None:
        """What each latent would pay now, and whether it is legal."""
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
            features = self.problem.end_observations(previous)[0]
        else:
            features = self.problem.observations(np.array([self._line]), previous)[0]
        return {"obs": features, "mask": self._legal_K.astype(np.int8)} if self._observation == "dict" else features

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


def check_options(floor: float, observation: str, render_mode: str | None, render_modes: Sequence[str]) -> None:
    """Refuse values outside their choices with `ConfigError`."""
    check_choice("observation", observation, ObservationKind)
    check_render_mode(render_mode, render_modes)
    if not math.isfinite(floor):
        raise ConfigError(f"floor={floor}: the least reward must be finite, in nats; -100 is far below most lines")


def refuse_impossible(problem: InferenceProblem) -> None:
    """Refuse traces without any possible path with `DataError`: they have no posterior, and no gap to it."""
    (impossible,) = np.nonzero(np.isneginf(problem.log_evidence_M))
    if len(impossible):
        raise DataError(
            f"trace {problem.trace_ids[impossible[0]]!r} has probability 0 under every path of latents: raise its "
            "emissions above -inf, or drop it"
        )


def trace_index(index: Mapping[str, int], trace_id: object) -> int:
    """The index of a trace; `UnknownNameError` with close matches when there is none of that name."""
    name = str(trace_id)  # so that 3 finds trace "3"
    if name not in index:
        shown = get_close_matches(name, index, n=5) or list(index)[:5]
        hint = f"The problem holds {len(index)} traces; env.unwrapped.trace_ids lists them all."
        raise UnknownNameError("trace", name, shown, hint)
    return index[name]


def observation_space(problem: InferenceProblem, observation: ObservationKind) -> gym.spaces.Space[Any]:
    """The space of one environment's observations."""
    largest = float(np.abs(problem.feature_NF).max(initial=0.0))
    bound = OBSERVATION_BOUND if largest <= OBSERVATION_BOUND else 10.0 ** math.ceil(math.log10(largest))
    features = gym.spaces.Box(-bound, bound, (problem.observation_size,), np.float32)
    if observation == "features":
        return features
    return gym.spaces.Dict({"obs": features, "mask": gym.spaces.Box(0, 1, (problem.num_latents,), np.int8)})


def render_path(render_mode: str, problem: InferenceProblem, trace: int, path: Sequence[int], log_joint: float) -> Any:
    """A trace under a line of status, its lines in the colours of their latents: a picture ("rgb_array") or text.

    In the text each line stands behind its latent, "?" for an action that was none; lines ahead are behind a dot.
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
    marks = ["?" if latent == NO_LATENT else f"z{latent}" for latent in path] + ["."] * (end - start - len(path))
    width = len(f"z{problem.num_latents - 1}")
    latents = [*path, *[NO_LATENT] * (end - start - len(path))]
    runs = [Run(f"# {status}\n")]
    for mark, text, latent in zip(marks, texts, latents, strict=True):
        runs += [Run(f"{mark:>{width}} | "), Run(text.rstrip(), latent), Run("\n")]
    return ansi_text(runs)
