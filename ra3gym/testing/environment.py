"""What a single environment is held to: Gymnasium's contract to the letter, and what agents of this package rely on."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from ra3gym.testing.comparing import MEASURED, difference
from ra3gym.testing.walking import (
    Env,
    Moment,
    mask_of,
    method_mask,
    outside,
    pick_illegal,
    record,
    scribble,
    told_difference,
    walk,
)

COLOUR = re.compile(r"\x1b\[\d*m")
"""What Gymnasium's warnings carry for the terminal."""


@dataclass(frozen=True)
class EnvironmentCase:
    """What the checks run on.

    make: a new environment with each call. If it takes `render_mode`, every mode in the metadata is tried. steps: of
    each walk; enough for an episode to end. seeds: one walk each. measured: keys of infos, and fields of dataclasses in
    them, that say how long something took: they may differ. tolerance: absolute and relative, of a pickled copy alone,
    whose weights lie elsewhere in memory, so that its arithmetic may round in other ways; 0 compares exactly.
    """

    make: Callable[..., Env]
    steps: int = 50
    seeds: tuple[int, ...] = (0, 1)
    measured: frozenset[str] = MEASURED
    tolerance: float = 0.0


def gymnasiums_own_check(case: EnvironmentCase) -> None:
    """`gymnasium.utils.env_checker.check_env` passes, without a warning."""
    with closing(case.make()) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version.*")  # wrappers are checked too
        warnings.filterwarnings("ignore", ".*alternative render modes.*")  # without a spec; another check makes them
        bare = env
        while isinstance(bare, (OrderEnforcing, PassiveEnvChecker)):  # what `gym.make` puts around every environment
            bare = bare.env
        try:
            check_env(bare)
        except Exception as error:
            told = COLOUR.sub("", str(error))
            raise AssertionError(f"check_env has something to say: {told}") from error


def data_fits_its_spaces(case: EnvironmentCase) -> None:
    """Observations are in their space with its very dtype, rewards finite, flags bool and never both, infos dicts."""
    for env, moments in _walks(case):
        for moment in moments:
            where = f"at {moment.where}"
            if told := outside(env.observation_space, moment.observation):
                raise AssertionError(f"{where}, {told}")
            assert isinstance(moment.info, dict), f"{where}, the info is no dict: {moment.info!r}"
            finite = np.ndim(moment.reward) == 0 and np.isfinite(float(moment.reward))
            assert finite, f"{where}, the reward {moment.reward!r} is no finite number"
            for name in ("terminated", "truncated"):
                flag = getattr(moment, name)
                assert isinstance(flag, (bool, np.bool_)), f"{where}, {name} is {flag!r}, which is no bool"
            assert not (moment.terminated and moment.truncated), f"{where}, an episode is terminated and truncated"


def seeds_decide_everything(case: EnvironmentCase) -> None:
    """The same seed and actions give the same observations, rewards, flags and infos, in a new environment."""
    for seed in case.seeds:
        with closing(case.make()) as one, closing(case.make()) as other:
            _compare(case, record(one, seed, case.steps), record(other, seed, case.steps), "in a second environment")


def reset_forgets_the_episode(case: EnvironmentCase) -> None:
    """`reset(seed=...)` in the middle of an episode gives what it gives in a new environment."""
    for seed in case.seeds:
        with closing(case.make()) as fresh, closing(case.make()) as used:
            record(used, seed + 1, 2)
            _compare(
                case, record(fresh, seed, case.steps), record(used, seed, case.steps), "after a reset in an episode"
            )


def returned_data_stays(case: EnvironmentCase) -> None:
    """What `reset` and `step` returned is not changed by later calls, so that it may be kept."""
    for seed in case.seeds:
        held: list[tuple[Any, Any]] = []
        with closing(case.make()) as env:
            moments = record(env, seed, case.steps, touch=lambda *data, held=held: held.append(data))
        for moment, (observation, info) in zip(moments, held, strict=True):
            told = difference(moment.observation, observation, measured=(), path="observation") or difference(
                moment.info, info, measured=(), path="info"
            )
            assert told is None, f"what {moment.where} returned was changed by a later call: {told}"


def returned_data_is_the_callers(case: EnvironmentCase) -> None:
    """Writing into what `reset` and `step` returned changes nothing in the environment."""
    for seed in case.seeds:
        with closing(case.make()) as one, closing(case.make()) as other:
            first = record(one, seed, case.steps)
            actions = [moment.action for moment in first if moment.action is not None]
            again = record(other, seed, case.steps, actions=actions, touch=scribble)
            _compare(case, first, again, "after writing into returned data")


def masks_agree(case: EnvironmentCase) -> None:
    """`info["action_mask"]`, `action_masks()` and an observed "mask" say the same; one action at least is legal."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            methods: list[Any] = []

            def ask(observation: Any, info: Any, env: Env = env, methods: list[Any] = methods) -> None:
                methods.append(method_mask(env))

            moments = record(env, seed, case.steps, touch=ask)
            for moment, method in zip(moments, methods, strict=True):
                _check_masks(env, moment, method)


def legal_actions_are_taken(case: EnvironmentCase) -> None:
    """No action that the mask allows is reported as illegal."""
    for _, moments in _walks(case):
        for moment in moments:
            assert not moment.info.get("illegal_action", False), (
                f"{moment.where} took action {moment.action}, which the mask allows, but info['illegal_action'] is set"
            )


def illegal_actions_are_reported(case: EnvironmentCase) -> None:
    """Masked and out-of-range actions raise nothing; where infos have "illegal_action", it is set."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            space = env.action_space
            if not isinstance(space, gym.spaces.Discrete):
                return
            rng = np.random.default_rng(seed)
            observation, info = env.reset(seed=seed)
            for t in range(case.steps):
                action = pick_illegal(space, mask_of(observation, info), rng)
                try:
                    observation, _, terminated, truncated, info = env.step(action)
                except Exception as error:
                    raise AssertionError(
                        f"step {t} with the illegal action {action} of {space} raised {type(error).__name__}: {error}"
                    ) from error
                if told := outside(env.observation_space, observation):
                    raise AssertionError(f"behind the illegal action {action} at step {t}, {told}")
                assert info.get("illegal_action", True), (
                    f"step {t} took action {action}, which is masked or out of range, but info['illegal_action'] is "
                    f"{info['illegal_action']}"
                )
                if terminated or truncated:
                    observation, info = env.reset()


def step_needs_reset(case: EnvironmentCase) -> None:
    """`step` raises `gymnasium.error.ResetNeeded` ahead of the first `reset`, and behind an episode's end."""
    with closing(case.make()) as env:
        _expect_reset_needed(env, "ahead of the first reset()")
        for moment in walk(env, case.seeds[0], case.steps):
            if moment.over:
                _expect_reset_needed(env, f"behind the episode's end, {moment.where}")
                return
    raise AssertionError(f"no episode ended within steps={case.steps}: raise steps, or look for the end")


def close_may_be_repeated(case: EnvironmentCase) -> None:
    """`close` raises nothing: ahead of a reset, in an episode, or a second time."""
    for steps in (None, 1):
        env = case.make()
        if steps is not None:
            record(env, case.seeds[0], steps)
        for time in ("first", "second"):
            try:
                env.close()
            except Exception as error:
                raise AssertionError(f"the {time} close() raised {type(error).__name__}: {error}") from error


def spec_survives_json(case: EnvironmentCase) -> None:
    """`EnvSpec.from_json(env.spec.to_json())` makes the same environment, where there is a spec."""
    with closing(case.make()) as env:
        if env.spec is None:
            return
        try:
            text = env.spec.to_json()
        except Exception as error:
            raise AssertionError(
                f"the spec's keywords {env.spec.kwargs} are no JSON ({error}): take names instead of objects"
            ) from error
        spec = EnvSpec.from_json(text)
        told = difference(env.spec.kwargs, spec.kwargs, path="spec.kwargs")
        assert told is None, f"JSON changes the spec: {told}"
        with closing(gym.make(spec)) as again:
            assert again.observation_space == env.observation_space, (
                f"made from JSON, it observes {again.observation_space}, not {env.observation_space}"
            )
            assert again.action_space == env.action_space, (
                f"made from JSON, it acts in {again.action_space}, not {env.action_space}"
            )
            seed = case.seeds[0]
            _compare(case, record(env, seed, 5), record(again, seed, 5), "made from the spec's JSON")


def pickles_go_on_alike(case: EnvironmentCase) -> None:
    """An environment that has been used comes back from a pickle as one that does the same; so does its spec."""
    with closing(case.make()) as env:
        assert pickle.loads(pickle.dumps(env.spec)) == env.spec, "the spec does not survive pickling"
        record(env, case.seeds[0], case.steps)
        try:
            data = pickle.dumps(env)
        except Exception as error:  # each type that cannot be pickled raises what it likes
            raise AssertionError(
                f"after {case.steps} steps it cannot be pickled: {type(error).__name__}: {error} "
                "(leave this check out if it need not be)"
            ) from error
        with closing(pickle.loads(data)) as again:
            seed = case.seeds[0]
            _compare(
                case, record(env, seed, case.steps), record(again, seed, case.steps), "after pickling", case.tolerance
            )


def renders_what_it_declares(case: EnvironmentCase) -> None:
    """`render` gives str for "ansi", uint8 (H, W, 3) for "rgb_array"; nothing without a mode."""
    for mode, env in _with_render_modes(case):
        with closing(env):
            assert env.render_mode == mode, f"made with render_mode={mode!r}, it has render_mode={env.render_mode!r}"
            if mode is None or mode == "human":
                continue
            for moment in walk(env, case.seeds[0], case.steps):
                frame = env.render()
                where = f"render() at {moment.where} in mode {mode!r} gave"
                if mode == "ansi":
                    assert isinstance(frame, str), f"{where} {type(frame).__name__}, not str"
                elif mode == "rgb_array":
                    array = np.asarray(frame)
                    assert (str(array.dtype), array.shape[2:]) == ("uint8", (3,)), (
                        f"{where} {array.dtype} of shape {array.shape}, not uint8 (H, W, 3)"
                    )
                if moment.over:
                    break


ENVIRONMENT_CHECKS: tuple[Callable[[EnvironmentCase], None], ...] = (
    gymnasiums_own_check,
    data_fits_its_spaces,
    seeds_decide_everything,
    reset_forgets_the_episode,
    returned_data_stays,
    returned_data_is_the_callers,
    masks_agree,
    legal_actions_are_taken,
    illegal_actions_are_reported,
    step_needs_reset,
    close_may_be_repeated,
    spec_survives_json,
    pickles_go_on_alike,
    renders_what_it_declares,
)
"""All checks of a single environment, in the order in which `check_environment` runs them."""


def _compare(
    case: EnvironmentCase, first: list[Moment], again: list[Moment], when: str, tolerance: float = 0.0
) -> None:
    """Refuse two walks with the same seed that differ."""
    told = told_difference(first, again, case.measured, tolerance)
    assert told is None, f"the same seed and actions give something else {when}: {told}"


def _walks(case: EnvironmentCase) -> Iterator[tuple[Env, list[Moment]]]:
    """A walk by legal actions for each seed, and its environment."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            yield env, record(env, seed, case.steps)


def _check_masks(env: Env, moment: Moment, method: Any) -> None:
    """Hold the masks of one moment against each other, and against the action space."""
    masks = {"info['action_mask']": moment.info.get("action_mask"), "action_masks()": method}
    if isinstance(moment.observation, dict):
        masks["observation['mask']"] = moment.observation.get("mask")
    given = {name: np.asarray(mask) for name, mask in masks.items() if mask is not None}
    dtypes = {"info['action_mask']": np.int8, "action_masks()": np.bool_}
    for name, mask in given.items():
        assert isinstance(env.action_space, gym.spaces.Discrete), f"{name} goes with Discrete actions only"
        assert mask.shape == (env.action_space.n,), (
            f"{name} at {moment.where} has shape {mask.shape}; there are {env.action_space.n} actions"
        )
        wanted = dtypes.get(name, mask.dtype)
        assert mask.dtype == wanted, f"{name} at {moment.where} is {mask.dtype}, not {np.dtype(wanted)}"
        assert np.isin(mask, (0, 1)).all(), f"{name} at {moment.where} holds something else than 0 and 1"
        assert mask.any(), f"{name} at {moment.where} allows no action"
        other_name, other = next(iter(given.items()))
        assert (mask.astype(bool) == other.astype(bool)).all(), (
            f"{name} and {other_name} differ at {moment.where}, in action {int((mask != other).argmax())}"
        )


def _expect_reset_needed(env: Env, when: str) -> None:
    try:
        env.step(env.action_space.sample())
    except gym.error.ResetNeeded:
        return
    except Exception as error:
        raise AssertionError(
            f"step() {when} raised {type(error).__name__} ({error}), not gymnasium.error.ResetNeeded"
        ) from error
    raise AssertionError(f"step() {when} raised nothing, not gymnasium.error.ResetNeeded")


def _with_render_modes(case: EnvironmentCase) -> Iterator[tuple[str | None, Env]]:
    """Environments in every mode that can be asked for; else one as it is made."""
    env = case.make()
    parameters = inspect.signature(case.make).parameters
    takes_mode = "render_mode" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    yield env.render_mode, env
    if takes_mode:
        for mode in env.metadata.get("render_modes", []):
            yield mode, case.make(render_mode=mode)
