"""The conformance suite: everything of ours passes it, and everything broken in a known way is caught, by name."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from ra3gym import lm
from ra3gym.abstractions.codebook import CodebookConfig, LatentPath, learn_codebook
from ra3gym.abstractions.corpus import encode_traces
from ra3gym.abstractions.inference_problem import problem_from_chain
from ra3gym.abstractions.posterior import LatentChain
from ra3gym.abstractions.sticky_prior import StickyPrior
from ra3gym.agents import Annotations, make_e_step
from ra3gym.agents.controls import AstEStep
from ra3gym.agents.e_step import ExactEStep, OracleEStep
from ra3gym.envs.conformance import (
    ENVIRONMENT_CHECKS,
    VECTOR_CHECKS,
    check_codebook,
    check_e_step,
    check_environment,
    check_vector_environment,
    difference,
)
from ra3gym.envs.latent_code import LatentCodeEnv
from ra3gym.envs.latent_code_vector import LatentCodeVectorEnv
from ra3gym.envs.option_mdp import OptionMDPEnv
from ra3gym.envs.option_mdp_vector import OptionMDPVectorEnv
from ra3gym.envs.token_code import TokenCodeEnv
from ra3gym.envs.token_code_vector import TokenCodeVectorEnv
from ra3gym.envs.trace_inference import TraceInferenceEnv
from ra3gym.envs.trace_inference_vector import TraceInferenceVectorEnv
from ra3gym.envs.wrappers import PruneActions
from ra3gym.errors import UnknownNameError
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain

from .code_vector_cases import TASKS

OPTION_MDP: list[dict[str, Any]] = [
    {},
    {"actions": "primitives", "observation": "dict"},
    {"actions": "options", "observation": "index"},
    {"actions": [0, 5, 9], "horizon": 9},
    {"instance_seed": 3, "num_states": 7, "mean_duration": 2.0, "num_terminals": 0, "gamma": 0.8, "horizon": 12},
]
TOKEN_CODE: list[dict[str, Any]] = [
    {"max_new_tokens": 5},
    {"max_new_tokens": 5, "observation": "tokens", "top_k": 6},
    {"max_new_tokens": 5, "action_space": "full", "observation": "dict", "reward": "all"},
]
LATENT_CODE: list[dict[str, Any]] = [
    {"max_new_tokens": 12, "segment_tokens": 3},
    {"max_new_tokens": 12, "segment_tokens": 3, "observation": "tokens", "decoder": "greedy", "segment_lines": 1},
    {"max_new_tokens": 12, "segment_tokens": 3, "observation": "dict", "top_k": 2, "reward": "all", "temperature": 0.5},
    {"max_new_tokens": 12, "min_prob": 0.2, "max_decisions": 3, "segment_tokens": 4, "segment_lines": None},
]
TRACE_INFERENCE: list[dict[str, Any]] = [{}, {"observation": "dict"}, {"observation": "dict", "floor": -3.0}]


@pytest.fixture(scope="session")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    """In float64, so that rounding in batches of other sizes decides nothing."""
    loaded = lm.load(tiny_model_folder)
    loaded.model.double()
    return loaded


@pytest.fixture(scope="session")
def traces() -> list[ExpertTrace]:
    return IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=20, num_held_out=1).traces(40)


def inference_problem() -> Any:
    """Random emissions, of which some are `-inf`."""
    rng = np.random.default_rng(0)
    emissions = [np.log(rng.dirichlet(np.ones(4), size=length)) for length in (5, 1, 3, 8)]
    for emission in emissions:
        emission[:, 1:][rng.random((len(emission), 3)) < 0.3] = -np.inf
    return problem_from_chain(LatentChain.under(StickyPrior(0.6, 4), emissions), ["five", "one", "three", "eight"])


# What is ours


def cases(loaded: lm.LoadedModel) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], list[dict[str, Any]]]]:
    code = {"model": loaded, "tasks": TASKS}
    problem = inference_problem()
    return {
        "OptionMDP": (OptionMDPEnv, OptionMDPVectorEnv, OPTION_MDP),
        "TraceInference": (
            partial(TraceInferenceEnv, problem),
            partial(TraceInferenceVectorEnv, problem),
            TRACE_INFERENCE,
        ),
        "TokenCode": (partial(TokenCodeEnv, **code), partial(TokenCodeVectorEnv, **code), TOKEN_CODE),
        "LatentCode": (partial(LatentCodeEnv, **code), partial(LatentCodeVectorEnv, **code), LATENT_CODE),
    }


ALL = [
    *(("OptionMDP", one) for one in OPTION_MDP),
    *(("TraceInference", one) for one in TRACE_INFERENCE),
    *(("TokenCode", one) for one in TOKEN_CODE),
    *(("LatentCode", one) for one in LATENT_CODE),
]


@pytest.mark.parametrize(("name", "options"), ALL, ids=lambda value: str(value))
def test_every_environment_with_every_keyword_conforms(
    loaded: lm.LoadedModel, name: str, options: dict[str, Any]
) -> None:
    single, _, _ = cases(loaded)[name]
    steps = 150 if name == "OptionMDP" else 12
    check_environment(single, options, steps=steps, seeds=(0,) if name.endswith("Code") else (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = single(**options)
        check_env_sb3(env)
        env.close()


@pytest.mark.parametrize(("name", "options"), ALL, ids=lambda value: str(value))
def test_every_vector_form_conforms(loaded: lm.LoadedModel, name: str, options: dict[str, Any]) -> None:
    single, vector, _ = cases(loaded)[name]
    # float64 rounds in batches of other sizes too, just less.
    few = {"steps": 6, "num_envs": 2, "tolerance": 1e-6} if name.endswith("Code") else {"steps": 150}
    check_vector_environment(single, vector, options, **few)


@pytest.mark.parametrize("name", ["OptionMDP", "TokenCode", "LatentCode", "TraceInference"])
def test_every_id_conforms_by_name(tiny_model_folder: Path, name: str) -> None:
    """Made by Gymnasium from JSON-able keywords, as users make them: this is where specs are checked."""
    kwargs: dict[str, Any] = {"horizon": 20} if name == "OptionMDP" else {"model": str(tiny_model_folder)}
    kwargs |= {
        "TraceInference": {"num_traces": 3},
        "TokenCode": {"max_new_tokens": 6},
        "LatentCode": {"max_new_tokens": 9, "segment_tokens": 2},
    }.get(name, {})
    env_id = f"ra3gym/{name}-v0"
    # A pickled model lies elsewhere in memory, and float32 arithmetic may round otherwise.
    by_name = {"gymnasiums_own_check", "step_needs_reset", "spec_survives_json", "pickles_go_on_alike"}
    rest = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ not in by_name]
    check_environment(env_id, kwargs, steps=40, seeds=(0,), tolerance=1e-4, skip=rest)
    by_name = {"spaces_and_mode_are_declared", "trajectories_are_those_of_singles"}
    rest = [one.__name__ for one in VECTOR_CHECKS if one.__name__ not in by_name]
    check_vector_environment(env_id, kwargs=kwargs, num_envs=2, steps=40, tolerance=1e-4, skip=rest)


@pytest.mark.parametrize("reindex", [False, True])
def test_a_pruned_environment_conforms(reindex: bool) -> None:
    check_environment(lambda **kwargs: PruneActions(OptionMDPEnv(**kwargs), [0, 3, 5], reindex=reindex), steps=150)


def test_gymnasiums_own_environments_pass_but_for_what_is_ours_to_ask() -> None:
    ours = ("illegal_actions_are_reported", "step_needs_reset", "gymnasiums_own_check", "renders_what_it_declares")
    check_environment("CartPole-v1", steps=60, skip=ours)
    check_environment("FrozenLake-v1", {"render_mode": "ansi"}, steps=60, skip=ours)
    check_environment("Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3", steps=60, skip=ours)


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'masks_agree'"):
        check_environment(OptionMDPEnv, skip=["mask_agree"])


# What is broken


class Walk(gym.Env[Any, Any]):
    """A sound environment to break: walk to 5 by steps of 1 or 2; 2 is masked at odd places; chance moves it back."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(0.0, 9.0, (2,), np.float32)
        self.place, self.running, self.time = 0, False, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.running, self.time = int(self.np_random.integers(3)), True, 0
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.running:
            raise gym.error.ResetNeeded("reset first")
        legal = self.is_legal(int(action))
        self.time += 1
        if legal:
            self.place += 1 + int(action) - int(self.np_random.random() < 0.3)
        terminated, truncated = self.place >= 5, self.place < 5 and self.time == 12
        self.running = not (terminated or truncated)
        return self.observe(), float(terminated), terminated, truncated, self.info() | {"illegal_action": not legal}

    def is_legal(self, action: int) -> bool:
        return action in (0, 1) and bool(self.action_masks()[action])

    def observe(self) -> Any:
        return np.array([self.place, self.time % 7], dtype=np.float32)

    def info(self) -> dict[str, Any]:
        return {"place": self.place, "action_mask": self.action_masks().astype(np.int8)}

    def action_masks(self) -> Any:
        return np.array([True, self.place % 2 == 0])

    def render(self) -> Any:
        return f"at {self.place}" if self.render_mode == "ansi" else np.zeros((4, 6, 3), dtype=np.uint8)


class Unseeded(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        return observation, info | {"luck": float(np.random.default_rng().random())}


class OtherDtype(Walk):
    def observe(self) -> Any:
        return np.array([self.place, 0], dtype=np.float16)


class MaskTooOpen(Walk):
    def info(self) -> dict[str, Any]:
        return super().info() | {"action_mask": np.ones(2, dtype=np.int8)}


class MasksTooOpen(Walk):
    """Both say that all is legal; the step knows better."""

    def is_legal(self, action: int) -> bool:
        return action in (0, 1) and (action == 0 or self.place % 2 == 0)

    def action_masks(self) -> Any:
        return np.ones(2, dtype=bool)


class MaskTooTight(Walk):
    def is_legal(self, action: int) -> bool:
        return action in (0, 1)


class NothingLegal(Walk):
    def action_masks(self) -> Any:
        return np.zeros(2, dtype=bool)

    def is_legal(self, action: int) -> bool:
        return action in (0, 1)


class MaskOfInt64(Walk):
    def info(self) -> dict[str, Any]:
        return super().info() | {"action_mask": self.action_masks().astype(np.int64)}


class ReusedMask(Walk):
    """Each info holds the same array, refilled."""

    held = None

    def info(self) -> dict[str, Any]:
        if self.held is None:
            self.held = np.zeros(2, dtype=np.int8)
        self.held[:] = self.action_masks()
        return {"nested": {"mask": self.held}}


class ReusedObservation(Walk):
    buffer = None

    def observe(self) -> Any:
        if self.buffer is None:
            self.buffer = np.zeros(2, dtype=np.float32)
        self.buffer[:] = super().observe()
        return self.buffer


class LeansOnWhatItReturned(Walk):
    """The info's array is new each time, but the next step reads it."""

    def info(self) -> dict[str, Any]:
        self.given = np.array([self.place])
        return super().info() | {"given": self.given}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = int(self.given[0])
        return super().step(action)


class RaisesOnIllegal(Walk):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.is_legal(int(action)) and self.running:
            raise gym.error.InvalidAction("no")
        return super().step(action)


class WalksOn(Walk):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.running = True
        return super().step(action)


class RememberingReset(Walk):
    """The clock is not set back by a reset in an episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        time = self.time if self.running else 0
        super().reset(seed=seed)
        self.time = time
        return self.observe(), self.info()


class ClosesOnce(Walk):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class PicklesWrong(Walk):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"place": 0, "forgotten": True}

    def info(self) -> dict[str, Any]:
        return super().info() | {"forgotten": getattr(self, "forgotten", False)}


class RendersFloats(Walk):
    def render(self) -> Any:
        return f"at {self.place}" if self.render_mode == "ansi" else np.zeros((4, 6, 3))


class RendersNothing(Walk):
    def render(self) -> Any:
        return None if self.render_mode == "ansi" else super().render()


class TerminatedAndTruncated(Walk):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or terminated, info


class NotANumber(Walk):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("nan") if terminated else reward, terminated, truncated, info


class UnboundedWalk(Walk):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


MUTANTS = [
    (Unseeded, "seeds_decide_everything", r"info\['luck'\]: .* is not .*, at reset\(seed=0\)"),
    (OtherDtype, "data_fits_its_spaces", "the observation is float16 .* the space has float32"),
    (MaskTooOpen, "masks_agree", r"action_masks\(\) and info\['action_mask'\] differ at .*, in action 1"),
    (MasksTooOpen, "legal_actions_are_taken", "took action 1, which the mask allows"),
    (MaskTooTight, "illegal_actions_are_reported", r"took action 1, .* info\['illegal_action'\] is False"),
    (NothingLegal, "masks_agree", r"info\['action_mask'\] at reset\(seed=0\) allows no action"),
    (MaskOfInt64, "masks_agree", "is int64, not int8"),
    (ReusedMask, "returned_data_stays", r"info\['nested'\]\['mask'\]\[\d\]"),
    (
        ReusedObservation,
        "returned_data_stays",
        r"reset\(seed=0\) returned was changed by a later call: observation\[0\]",
    ),
    (LeansOnWhatItReturned, "returned_data_is_the_callers", "after writing into returned data"),
    (RaisesOnIllegal, "illegal_actions_are_reported", "raised InvalidAction: no"),
    (WalksOn, "step_needs_reset", r"step\(\) ahead of the first reset\(\) raised (nothing|AttributeError)"),
    (RememberingReset, "reset_forgets_the_episode", r"after a reset in an episode: observation\[1\]"),
    (ClosesOnce, "close_may_be_repeated", r"the second close\(\) raised RuntimeError: closed already"),
    (PicklesWrong, "pickles_go_on_alike", r"after pickling: info\['forgotten'\]: False is not True"),
    (RendersFloats, "renders_what_it_declares", r"'rgb_array' gave float64 of shape \(4, 6, 3\)"),
    (RendersNothing, "renders_what_it_declares", "'ansi' gave NoneType, not str"),
    (TerminatedAndTruncated, "data_fits_its_spaces", "terminated and truncated"),
    (NotANumber, "data_fits_its_spaces", "the reward nan is no finite number"),
    (UnboundedWalk, "gymnasiums_own_check", "^gymnasiums_own_check: check_env has something to say: WARN: A Box"),
]


def test_the_sound_one_passes() -> None:
    check_environment(Walk)
    check_vector_environment(Walk, partial(NativeWalk, Walk))


@pytest.mark.parametrize(("broken", "check", "message"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_is_caught_by_the_right_check(broken: type[Walk], check: str, message: str) -> None:
    others = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ != check]
    with pytest.raises(AssertionError, match=message) as caught:
        check_environment(broken, skip=others)
    assert str(caught.value).startswith(f"{check}: ")


def test_every_check_has_its_mutant() -> None:
    with_spec = {"spec_survives_json"}  # below
    assert {check for _, check, _ in MUTANTS} | with_spec == {one.__name__ for one in ENVIRONMENT_CHECKS}


def test_a_spec_with_an_object_in_it_is_caught() -> None:
    gym.register("ra3gym-test/Walk-v0", entry_point=lambda how=None, **kwargs: Walk(**kwargs))
    try:
        others = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ != "spec_survives_json"]
        with pytest.raises(AssertionError, match=r"are no JSON .* take names instead of objects"):
            check_environment("ra3gym-test/Walk-v0", {"how": object()}, skip=others)
    finally:
        del gym.registry["ra3gym-test/Walk-v0"]


class NativeWalk(SyncVectorEnv):
    """A sound vector form, made of single ones, to break."""

    def __init__(self, kind: type[Walk], num_envs: int, autoreset_mode: str) -> None:
        super().__init__([kind] * num_envs, autoreset_mode=AutoresetMode(autoreset_mode))
        self.begun = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.begun = True
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        if not self.begun:
            raise gym.error.ResetNeeded("reset first")
        return super().step(actions)

    def close(self, **kwargs: Any) -> None:
        if not self.closed:
            super().close(**kwargs)


class SaysAnotherMode(NativeWalk):
    def __init__(self, kind: type[Walk], num_envs: int, autoreset_mode: str) -> None:
        super().__init__(kind, num_envs, autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}


class WrongFinal(NativeWalk):
    """The last observation is that of the new episode."""

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        if "final_obs" in info:
            for e in np.flatnonzero(info["_final_obs"]):
                info["final_obs"][e] = observation[e].copy()
        return observation, reward, terminated, truncated, info


class ResetsAll(NativeWalk):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "reset_mask"})


class SharedSeed(NativeWalk):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class SeedsByNumber(NativeWalk):
    """Streams depend on how many environments there are."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = [seed + e for e in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            seeds = [None if one is None else one + 100 * self.num_envs for one in seeds]
        return super().reset(seed=seeds, options=options)


class Spills(NativeWalk):
    """An illegal action in one environment stops them all."""

    def step(self, actions: Any) -> Any:
        return super().step(np.full_like(actions, 7) if (np.asarray(actions) > 1).any() else actions)


class SharesItsBuffer(NativeWalk):
    def __init__(self, kind: type[Walk], num_envs: int, autoreset_mode: str) -> None:
        super().__init__(kind, num_envs, autoreset_mode)
        self.copy = False


class WrongMasks(NativeWalk):
    def action_masks(self) -> Any:
        return np.ones((self.num_envs, 2), dtype=bool)


class ClosesNativeOnce(NativeWalk):
    def close(self, **kwargs: Any) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        super().close(**kwargs)


class StepsUnasked(NativeWalk):
    def step(self, actions: Any) -> Any:
        if not self.begun:
            self.reset()
        return super().step(actions)


class OtherSpace(NativeWalk):
    def __init__(self, kind: type[Walk], num_envs: int, autoreset_mode: str) -> None:
        super().__init__(kind, num_envs, autoreset_mode)
        self.observation_space = gym.spaces.Box(0.0, 9.0, (num_envs, 2), np.float64)


VECTOR_MUTANTS = [
    (SaysAnotherMode, "spaces_and_mode_are_declared", "its metadata has <AutoresetMode.NEXT_STEP"),
    (WrongFinal, "trajectories_are_those_of_singles", r"SAME_STEP: .*info\['final_obs'\]\[\d\]"),
    (OtherSpace, "observations_are_in_their_space", "the observation is float32 .* the space has float64"),
    (ResetsAll, "reset_mask_leaves_the_others", "reset_mask is False for environment 1, but it was touched"),
    (SharedSeed, "seeds_may_be_a_list", r"reset\(seed=0\) is not reset\(seed=\[0, 1, ...\]\)"),
    (SeedsByNumber, "rows_do_not_depend_on_num_envs", "environment 0 of 3 does not do what it does alone"),
    (Spills, "a_row_s_illegal_action_is_its_own", "an illegal action in environment 0 changed environment 1"),
    (SharesItsBuffer, "returned_arrays_stay", r"reset\(seed=0\) returned was changed by a later call"),
    (WrongMasks, "batched_masks_agree", r"action_masks\(\).* which info\['action_mask'\] has"),
    (StepsUnasked, "vector_step_needs_reset", "raised nothing"),
    (ClosesNativeOnce, "vector_close_may_be_repeated", "the second close"),
]


@pytest.mark.parametrize(
    ("broken", "check", "message"), VECTOR_MUTANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_vector_form_is_caught(broken: type[NativeWalk], check: str, message: str) -> None:
    others = [one.__name__ for one in VECTOR_CHECKS if one.__name__ != check]
    with pytest.raises(AssertionError, match=message) as caught:
        check_vector_environment(Walk, partial(broken, Walk), skip=others)
    assert str(caught.value).startswith(f"{check}: ")


def test_every_vector_check_has_its_mutant() -> None:
    assert {check for _, check, _ in VECTOR_MUTANTS} == {one.__name__ for one in VECTOR_CHECKS}


def test_a_vector_form_must_be_told_where_there_is_no_id() -> None:
    with pytest.raises(ValueError, match="make_vector=None needs an id"):
        check_vector_environment(Walk)


# Codebooks and E-steps


@pytest.fixture(scope="session")
def codebook(traces: list[ExpertTrace]) -> Any:
    return learn_codebook(encode_traces(traces), CodebookConfig(8, 1, 4), np.random.default_rng(0))


def test_a_learned_codebook_conforms(codebook: Any, traces: list[ExpertTrace]) -> None:
    check_codebook(codebook, traces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda book: {"emission_PK": book.emission_PK[1:]}, r"emission_PK has shape .* these traces make it"),
        (lambda book: {"emission_PK": 3 * book.emission_PK}, "which is no probability|above 1"),
        (lambda book: {"emission_PK": np.clip(book.emission_PK, 0.8, 1.0)}, "above 1, over"),
        (lambda book: {"emission_PK": 0 * book.emission_PK}, r"trace 0 \('idioms.*'\) is impossible"),
        (lambda book: {"keep_L1": book.keep_L1 - 1.0}, "keep_L1 holds -.*, which is no probability"),
        (lambda book: {"word_WK": 0.5 * book.word_WK}, r"p\(latent \| word\) of word .* sums to 0.500000, not to 1"),
        (lambda book: {"word_WK": book.word_WK * np.nan}, "word_WK is not finite at"),
        (lambda book: {"evidence": ()}, "evidence is"),
    ],
)
def test_a_broken_codebook_is_caught(
    codebook: Any, traces: list[ExpertTrace], change: Callable[[Any], dict[str, Any]], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_codebook(replace(codebook, **change(codebook)), traces)


@pytest.mark.parametrize("name", ["exact", "pause", "random", "shuffled", "macro", "ast"])
def test_every_cheap_e_step_conforms(name: str, traces: list[ExpertTrace]) -> None:
    check_e_step(make_e_step(name, CodebookConfig(8, 1, 3)), traces)


def test_an_oracle_conforms_if_it_may_read_labels(traces: list[ExpertTrace]) -> None:
    check_e_step(OracleEStep(), [traces[0]] * 2, reads_planted_labels=True)
    assert isinstance(ExactEStep().infer(traces[:3], np.random.default_rng(0)), Annotations)


class Changed:
    """An E-step that spoils what a sound one infers."""

    def __init__(self, change: Callable[[Any, Any, Any], Any]) -> None:
        self.change = change

    def infer(self, traces: Any, rng: Any) -> Any:
        return self.change(AstEStep().infer(traces, rng), traces, rng)


def with_first(found: Annotations, path: Any) -> Annotations:
    return replace(found, paths=(path, *found.paths[1:]), gains=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, traces, rng: replace(found, paths=found.paths[1:], gains=None), "39 paths for 40 traces"),
        (
            lambda found, traces, rng: with_first(found, LatentPath((0,), (True,))),
            r"the path of trace 0 \('idioms.*'\) has 1 latents and 1 switches for \d+ lines",
        ),
        (
            lambda found, traces, rng: with_first(
                found, replace(found.paths[0], latents=(999, *found.paths[0].latents[1:]))
            ),
            r"has latent 999 at line 0, but there are names for \d+ latents",
        ),
        (
            lambda found, traces, rng: with_first(
                found,
                LatentPath((0, *[1] * (len(traces[0].steps) - 1)), (True, *[False] * (len(traces[0].steps) - 1))),
            ),
            "goes from latent 0 to 1 at line 1 without a switch",
        ),
        (lambda found, traces, rng: replace(found, metrics={"evidence": np.nan}), "metric 'evidence' is nan"),
        (lambda found, traces, rng: replace(found, names=tuple("name" for _ in found.names)), "the names of latent 0"),
        (
            lambda found, traces, rng: replace(found, metrics={"luck": np.random.default_rng().random()}),
            r"other annotations the second time: metrics\['luck'\]",
        ),
        (
            lambda found, traces, rng: replace(found, metrics={"luck": np.random.random()}),  # noqa: NPY002
            "drew from numpy's global generator",
        ),
        (
            lambda found, traces, rng: replace(found, metrics={"planted": float(traces[0].planted is None)}),
            "reads planted labels",
        ),
    ],
)
def test_a_broken_e_step_is_caught(
    traces: list[ExpertTrace], change: Callable[[Any, Any, Any], Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_e_step(Changed(change), traces)


# As tests


SUITE = """
import gymnasium as gym
from ra3gym.envs.conformance import EnvironmentConformance, VectorEnvironmentConformance
from ra3gym.envs.option_mdp import OptionMDPEnv
from ra3gym.envs.option_mdp_vector import OptionMDPVectorEnv

class TestSound(EnvironmentConformance):
    steps = 150
    def make(self, **kwargs):
        return OptionMDPEnv(horizon=20, **kwargs)

class TestBroken(TestSound):
    test_pickles_go_on_alike = None
    def make(self, **kwargs):
        env = super().make(**kwargs)
        env.action_masks = lambda: __import__("numpy").zeros(12, bool)
        return env

class TestVector(VectorEnvironmentConformance):
    def make_single(self):
        return OptionMDPEnv(horizon=20)
    def make_vector(self, **kwargs):
        return OptionMDPVectorEnv(horizon=20, **kwargs)
"""


def test_pytest_runs_each_check_as_a_test_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path / "test_mine.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len([line for line in lines if line.startswith("PASSED")]) == (
        2 * len(ENVIRONMENT_CHECKS) - 2 + len(VECTOR_CHECKS)
    ), done.stdout
    assert len(failed) == 1
    assert "TestBroken::test_masks_agree" in failed[0]


# Differences


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}, "x['a'][1]['b']: 2.0 is not 2.5"),
        ({"a": 1}, {"b": 1}, "x: 'a', 'b' stands in one of the two only"),
        (np.zeros(3), np.array([0.0, 0.0, 1.0]), "x[2]: 0.0 is not 1.0 (1 of 3 differ)"),
        (np.zeros(3), np.zeros(3, np.float32), "x: float64 of shape (3,) is not float32 of shape (3,)"),
        (1, 1.0, "x: 1 (int) is not 1.0 (float)"),
        ((1, 2), (1,), "x: 2 entries, not 1"),
        (np.array([None, "a"], object), np.array([None, "b"], object), "x[1]: 'a' is not 'b'"),
        (float("nan"), float("nan"), None),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), None),
        ({"seconds": 1.0, "a": 1}, {"seconds": 2.0, "a": 1}, None),
        (None, None, None),
    ],
)
def test_the_first_difference_is_named(one: Any, other: Any, told: str | None) -> None:
    assert difference(one, other, path="x") == told


def test_a_tolerance_is_for_floats_only() -> None:
    assert difference({"a": 1.0}, {"a": 1.0 + 1e-7}, tolerance=1e-5) is None
    assert difference({"a": 1}, {"a": 2}, tolerance=10.0) is not None
