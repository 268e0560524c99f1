"""What a single environment must satisfy: Gymnasium's contract, and what the agents of this package rely on."""

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

from ra3gym.testing.differences import MEASURED, difference
from ra3gym.testing.walks import (
    Env,
    Moment,
    deep_copy,
    mask_of,
    method_mask,
    misfit,
    overwrite,
    pick_illegal,
    record,
    walk,
    walk_difference,
)

COLOR = re.compile(r"\x1b\[\d*m")
"""The terminal colors in Gymnasium's warnings."""


@dataclass(frozen=True)
class EnvironmentCase:
    """What the checks run on.

    Attributes:
        make: returns a new environment. If it takes `render_mode`, every mode in the metadata is tried.
        steps: length of each walk; large enough for an episode to end.
        seeds: seeds of the walks.
        measured: keys of infos, and fields of dataclasses in them, that hold a measured time; they are not compared.
        tolerance: absolute and relative tolerance for a pickled or deep copy, whose arithmetic may round differently
            because its weights have another place in memory; 0 compares exactly.
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
        warnings.filterwarnings("ignore", ".*alternative render modes.*")  # another check tries them
        bare = env
        while isinstance(bare, (OrderEnforcing, PassiveEnvChecker)):  # what `gym.make` puts around every environment
            bare = bare.env
        try:
            check_env(bare)
        except Exception as error:
            message = COLOR.sub("", str(error))
            raise AssertionError(f"check_env raised or warned: {message}") from error


def data_fits_its_spaces(case: EnvironmentCase) -> None:
    """Observations fit their space and dtype; rewards are finite; flags are bool, never both True; infos are dicts."""
    for env, moments in _walks(case):
        for moment in moments:
            where = f"at {moment.call}"
            if found := misfit(env.observation_space, moment.observation):
                raise AssertionError(f"{where}, {found}")
            assert isinstance(moment.info, dict), f"{where}, the info is not a dict: {moment.info!r}"
            finite = np.ndim(moment.reward) == 0 and np.isfinite(float(moment.reward))
            assert finite, f"{where}, the reward {moment.reward!r} is not a finite number"
            for name in ("terminated", "truncated"):
                flag = getattr(moment, name)
                assert isinstance(flag, (bool, np.bool_)), f"{where}, {name} is {flag!r}, not a bool"
            assert not (moment.terminated and moment.truncated), (
                f"{where}, the episode is both terminated and truncated"
            )


def seeds_decide_everything(case: EnvironmentCase) -> None:
    """The same seed and actions give the same observations, rewards, flags and infos, in a new environment."""
    for seed in case.seeds:
        with closing(case.make()) as one, closing(case.make()) as other:
            _compare(case, record(one, seed, case.steps), record(other, seed, case.steps), "in a second environment")


def reset_forgets_the_episode(case: EnvironmentCase) -> None:
    """`reset(seed=...)` in the middle of an episode starts the same episode as in a new environment."""
    for seed in case.seeds:
        with closing(case.make()) as fresh, closing(case.make()) as used:
            record(used, seed + 1, 2)
            _compare(
                case, record(fresh, seed, case.steps), record(used, seed, case.steps), "after a reset in mid-episode"
            )


def returned_data_is_not_changed(case: EnvironmentCase) -> None:
    """Later calls do not change what `reset` and `step` have returned, so a caller may keep it."""
    for seed in case.seeds:
        returned: list[tuple[Any, Any]] = []
        with closing(case.make()) as env:
            moments = record(env, seed, case.steps, touch=lambda *data, returned=returned: returned.append(data))
        for moment, (observation, info) in zip(moments, returned, strict=True):
            found = difference(moment.observation, observation, measured=(), path="observation") or difference(
                moment.info, info, measured=(), path="info"
            )
            assert found is None, f"what {moment.call} returned was changed by a later call: {found}"


def returned_data_may_be_overwritten(case: EnvironmentCase) -> None:
    """A caller that writes into what `reset` and `step` returned changes nothing in the environment."""
    for seed in case.seeds:
        with closing(case.make()) as one, closing(case.make()) as other:
            first = record(one, seed, case.steps)
            actions = [moment.action for moment in first if moment.action is not None]
            again = record(other, seed, case.steps, actions=actions, touch=overwrite)
            _compare(case, first, again, "after a caller has overwritten returned data")


def masks_agree(case: EnvironmentCase) -> None:
    """`info["action_mask"]`, `action_masks()` and an observed "mask" are equal, and allow at least one action."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            methods: list[Any] = []

            def ask(observation: Any, info: Any, env: Env = env, methods: list[Any] = methods) -> None:
                methods.append(method_mask(env))

            moments = record(env, seed, case.steps, touch=ask)
            for moment, method in zip(moments, methods, strict=True):
                _check_masks(env, moment, method)


def legal_actions_are_accepted(case: EnvironmentCase) -> None:
    """No action that the mask allows is reported as illegal."""
    for _, moments in _walks(case):
        for moment in moments:
            assert not moment.info.get("illegal_action", False), (
                f"{moment.call} took action {moment.action}, which the mask allows, but info['illegal_action'] is set"
            )


def illegal_actions_are_reported(case: EnvironmentCase) -> None:
    """Masked and out-of-range actions raise nothing; if infos have "illegal_action", it is True."""
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
                if found := misfit(env.observation_space, observation):
                    raise AssertionError(f"after the illegal action {action} at step {t}, {found}")
                assert info.get("illegal_action", True), (
                    f"step {t} took action {action}, which is masked or out of range, but info['illegal_action'] is "
                    f"{info['illegal_action']}"
                )
                if terminated or truncated:
                    observation, info = env.reset()


def step_needs_reset(case: EnvironmentCase) -> None:
    """`step` raises `gymnasium.error.ResetNeeded` before the first `reset` and after the end of an episode."""
    with closing(case.make()) as env:
        _expect_reset_needed(env, "before the first reset()")
        for moment in walk(env, case.seeds[0], case.steps):
            if moment.over:
                _expect_reset_needed(env, f"after the end of an episode ({moment.call})")
                return
    raise AssertionError(f"no episode ended within steps={case.steps}: raise steps, or make episodes end")


def close_may_be_repeated(case: EnvironmentCase) -> None:
    """`close` raises nothing: before a reset, in mid-episode, or a second time."""
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
    """`EnvSpec.from_json(env.spec.to_json())` makes the same environment, if there is a spec."""
    with closing(case.make()) as env:
        if env.spec is None:
            return
        try:
            text = env.spec.to_json()
        except Exception as error:
            raise AssertionError(
                f"the spec's keywords {env.spec.kwargs} have no JSON form ({error}): take names instead of objects"
            ) from error
        spec = EnvSpec.from_json(text)
        found = difference(env.spec.kwargs, spec.kwargs, path="spec.kwargs")
        assert found is None, f"JSON changes the spec: {found}"
        with closing(gym.make(spec)) as again:
            assert again.observation_space == env.observation_space, (
                f"made from JSON, it observes {again.observation_space}, not {env.observation_space}"
            )
            assert again.action_space == env.action_space, (
                f"made from JSON, it acts in {again.action_space}, not {env.action_space}"
            )
            seed = case.seeds[0]
            _compare(case, record(env, seed, 5), record(again, seed, 5), "made from the spec's JSON")


def pickled_copies_behave_the_same(case: EnvironmentCase) -> None:
    """A pickled copy of an environment that was used behaves the same; so does its spec."""
    with closing(case.make()) as env:
        assert pickle.loads(pickle.dumps(env.spec)) == env.spec, "the spec does not survive pickling"
        record(env, case.seeds[0], case.steps)
        try:
            data = pickle.dumps(env)
        except Exception as error:  # types that cannot be pickled raise errors of many kinds
            raise AssertionError(
                f"after {case.steps} steps it cannot be pickled: {type(error).__name__}: {error} "
                "(skip this check if it need not be pickled)"
            ) from error
        with closing(pickle.loads(data)) as again:
            seed = case.seeds[0]
            _compare(
                case, record(env, seed, case.steps), record(again, seed, case.steps), "after pickling", case.tolerance
            )


def deep_copies_continue_alike(case: EnvironmentCase) -> None:
    """A deep copy in mid-episode continues like the environment, and neither changes the other: for tree search."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            begun = record(env, seed, 2)[-1]
            copies = [deep_copy(env), deep_copy(env)]
            walks = []
            for one in (*copies, env):  # one after the other: each is closed before the next walks
                with closing(one):
                    walks.append(record(one, seed, case.steps, after=begun))
        first, second, original = walks
        _compare(case, first, second, "in a deep copy, after another deep copy was used and closed", case.tolerance)
        _compare(
            case, first, original, "in the environment, after its deep copies were used and closed", case.tolerance
        )


def renders_what_it_declares(case: EnvironmentCase) -> None:
    """`render` returns a str for "ansi", and uint8 (height, width, 3) for "rgb_array"."""
    for mode, env in _with_render_modes(case):
        with closing(env):
            assert env.render_mode == mode, f"made with render_mode={mode!r}, it has render_mode={env.render_mode!r}"
            if mode is None or mode == "human":
                continue
            for moment in walk(env, case.seeds[0], case.steps):
                frame = env.render()
                where = f"render() at {moment.call} in mode {mode!r} returned"
                if mode == "ansi":
                    assert isinstance(frame, str), f"{where} {type(frame).__name__}, not str"
                elif mode == "rgb_array":
                    array = np.asarray(frame)
                    assert (str(array.dtype), array.shape[2:]) == ("uint8", (3,)), (
                        f"{where} {array.dtype} of shape {array.shape}, not uint8 (height, width, 3)"
                    )
                if moment.over:
                    break


ENVIRONMENT_CHECKS: tuple[Callable[[EnvironmentCase], None], ...] = (
    gymnasiums_own_check,
    data_fits_its_spaces,
    seeds_decide_everything,
    reset_forgets_the_episode,
    returned_data_is_not_changed,
    returned_data_may_be_overwritten,
    masks_agree,
    legal_actions_are_accepted,
    illegal_actions_are_reported,
    step_needs_reset,
    close_may_be_repeated,
    spec_survives_json,
    pickled_copies_behave_the_same,
    deep_copies_continue_alike,
    renders_what_it_declares,
)
"""All checks of a single environment, in the order in which `check_environment` runs them."""


def _compare(
    case: EnvironmentCase, first: list[Moment], second: list[Moment], when: str, tolerance: float = 0.0
) -> None:
    """Raise `AssertionError` if two walks with the same seed differ."""
    found = walk_difference(first, second, case.measured, tolerance)
    assert found is None, f"the same seed and actions give another result {when}: {found}"


def _walks(case: EnvironmentCase) -> Iterator[tuple[Env, list[Moment]]]:
    """Yield an environment and its walk by legal actions, for each seed."""
    for seed in case.seeds:
        with closing(case.make()) as env:
            yield env, record(env, seed, case.steps)


def _check_masks(env: Env, moment: Moment, method: Any) -> None:
    """Check that the masks of one moment are equal and fit the action space."""
    masks = {"info['action_mask']": moment.info.get("action_mask"), "action_masks()": method}
    if isinstance(moment.observation, dict):
        masks["observation['mask']"] = moment.observation.get("mask")
    given = {name: np.asarray(mask) for name, mask in masks.items() if mask is not None}
    dtypes = {"info['action_mask']": np.int8, "action_masks()": np.bool_}
    for name, mask in given.items():
        assert isinstance(env.action_space, gym.spaces.Discrete), f"{name} needs a Discrete action space"
        assert mask.shape == (env.action_space.n,), (
            f"{name} at {moment.call} has shape {mask.shape}; there are {env.action_space.n} actions"
        )
        wanted = dtypes.get(name, mask.dtype)
        assert mask.dtype == wanted, f"{name} at {moment.call} is {mask.dtype}, not {np.dtype(wanted)}"
        assert np.isin(mask, (0, 1)).all(), f"{name} at {moment.call} holds values other than 0 and 1"
        assert mask.any(), f"{name} at {moment.call} allows no action"
        other_name, other = next(iter(given.items()))
        assert (mask.astype(bool) == other.astype(bool)).all(), (
            f"{name} and {other_name} differ at {moment.call}, in action {int((mask != other).argmax())}"
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
    """Yield the environment as `make` returns it, then one in every render mode of its metadata."""
    env = case.make()
    parameters = inspect.signature(case.make).parameters
    takes_mode = "render_mode" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    yield env.render_mode, env
    if takes_mode:
        for mode in env.metadata.get("render_modes", []):
            yield mode, case.make(render_mode=mode)
