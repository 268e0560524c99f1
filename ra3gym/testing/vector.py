"""What a vector environment is held to: it does what `SyncVectorEnv` does over the single ones, and rows keep apart.

Shape suffixes: E environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from ra3gym.testing.comparing import MEASURED, difference
from ra3gym.testing.walking import Env, Moment, Touch, mask_of, outside, pick_legal, told_difference

Vector: TypeAlias = gym.vector.VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class VectorCase:
    """What the checks run on.

    make_single: a new single environment. make_vector: called with `num_envs=` and `autoreset_mode=`, the latter as
    Gymnasium spells it ("NextStep", ...). steps: of each walk; enough for several episodes to end. modes: those that
    the environment supports. tolerance: absolute and relative, where the same row is compared in batches of other
    sizes, whose arithmetic rounds in other ways; 0 compares exactly, as with float64 one can. measured: see
    `EnvironmentCase`.
    """

    make_single: Callable[[], Env]
    make_vector: Callable[..., Vector]
    num_envs: int = 3
    steps: int = 40
    seeds: tuple[int, ...] = (0,)
    modes: tuple[AutoresetMode, ...] = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    tolerance: float = 0.0
    measured: frozenset[str] = MEASURED

    def native(self, mode: AutoresetMode | None = None, num_envs: int | None = None) -> Vector:
        """The vector environment in a mode, the first by default."""
        return self.make_vector(num_envs=num_envs or self.num_envs, autoreset_mode=(mode or self.modes[0]).value)

    def sync(self, mode: AutoresetMode) -> Vector:
        """Gymnasium's own vector over single environments."""
        return SyncVectorEnv([self.make_single] * self.num_envs, autoreset_mode=mode)


def spaces_and_mode_are_declared(case: VectorCase) -> None:
    """Spaces are the single environment's, batched; `metadata["autoreset_mode"]` is what was asked for."""
    with closing(case.make_single()) as single:
        for mode in case.modes:
            with closing(case.native(mode)) as native:
                said = native.metadata.get("autoreset_mode")
                assert said is mode, f"made with autoreset_mode={mode}, its metadata has {said!r}"
                assert native.num_envs == case.num_envs, f"num_envs is {native.num_envs}, not {case.num_envs}"
                for name in ("observation_space", "action_space"):
                    own, batched, wanted = (
                        getattr(native, f"single_{name}"),
                        getattr(native, name),
                        getattr(single, name),
                    )
                    assert own == wanted, f"single_{name} is {own}; the single environment has {wanted}"
                    assert batched == batch_space(wanted, case.num_envs), (
                        f"{name} is {batched}, not {batch_space(wanted, case.num_envs)}"
                    )


def trajectories_are_those_of_singles(case: VectorCase) -> None:
    """In each mode, observations, rewards, flags and infos equal `SyncVectorEnv`'s, exactly."""
    for mode in case.modes:
        for seed in case.seeds:
            with closing(case.native(mode)) as native, closing(case.sync(mode)) as sync:
                mine, theirs = record_vector(native, seed, case.steps), record_vector(sync, seed, case.steps)
            told = told_difference(mine, theirs, case.measured, case.tolerance)
            assert told is None, f"{mode}: it is not what SyncVectorEnv gives: {told}"
            ended = sum(np.logical_or(moment.terminated, moment.truncated).sum() for moment in mine)
            assert ended >= 1, f"no episode ended within steps={case.steps}: raise steps"


def observations_are_in_their_space(case: VectorCase) -> None:
    """Batched observations are in the batched space, with its very dtype."""
    with closing(case.native()) as native:
        for moment in record_vector(native, case.seeds[0], case.steps):
            if told := outside(native.observation_space, moment.observation):
                raise AssertionError(f"at {moment.where}, {told}")


def reset_mask_leaves_the_others(case: VectorCase) -> None:
    """`reset(options={"reset_mask": ...})` begins episodes where it is set, and nowhere else, as `SyncVectorEnv`."""
    if AutoresetMode.DISABLED not in case.modes:
        return
    chosen_E = np.arange(case.num_envs) % 2 == 0
    found = []
    for make in (case.native, case.sync):
        with closing(make(AutoresetMode.DISABLED)) as env:
            before = record_vector(env, case.seeds[0], 1)[-1]
            options = {"reset_mask": chosen_E.copy()}
            observation, info = _reset(env, [100 + e for e in range(case.num_envs)], options)
            found.append([Moment("reset with a reset_mask", deepcopy(observation), deepcopy(info))])
            for e in np.flatnonzero(~chosen_E).tolist():
                told = difference(row(before.observation, e), row(observation, e), path="observation")
                assert told is None, f"reset_mask is False for environment {e}, but it was touched: {told}"
    told = told_difference(found[0], found[1], case.measured, case.tolerance)
    assert told is None, f"it is not what SyncVectorEnv gives: {told}"


def seeds_may_be_a_list(case: VectorCase) -> None:
    """`reset(seed=s)` seeds environment e with `s + e`; a list gives each its own, one of another length is refused."""
    seed, E = case.seeds[0], case.num_envs
    with closing(case.native()) as one, closing(case.native()) as other:
        first, again = (
            record_vector(one, seed, case.steps),
            record_vector(other, [seed + e for e in range(E)], case.steps),
        )
        told = told_difference(first, again, case.measured)
        assert told is None, f"reset(seed={seed}) is not reset(seed=[{seed}, {seed + 1}, ...]): {told}"
        refused = False
        try:
            _reset(one, [0] * (E + 1))
        except Exception:  # Gymnasium names no type for it: its own vector environments assert
            refused = True
        assert refused, f"reset() took {E + 1} seeds for {E} environments"
        told = told_difference(first, record_vector(one, seed, case.steps), case.measured)
        assert told is None, f"refusing {E + 1} seeds for {E} environments changed what follows: {told}"


def rows_do_not_depend_on_num_envs(case: VectorCase) -> None:
    """Environment e with seed s + e does what a vector of one does with that seed."""
    seed = case.seeds[0]
    with closing(case.native()) as many:
        whole = record_vector(many, seed, case.steps)
    for e in range(case.num_envs):
        with closing(case.native(num_envs=1)) as alone:
            single = record_vector(alone, seed + e, case.steps)
        told = told_difference(_row_of(whole, e), _row_of(single, 0), case.measured, case.tolerance)
        assert told is None, f"environment {e} of {case.num_envs} does not do what it does alone: {told}"


def a_row_s_illegal_action_is_its_own(case: VectorCase) -> None:
    """An action out of range in one environment raises nothing, and changes nothing in the others."""
    with closing(case.native()) as wrong, closing(case.native()) as right:
        space = wrong.single_action_space
        if not isinstance(space, gym.spaces.Discrete):
            return
        found = []
        for env in (wrong, right):
            observation, info = env.reset(seed=case.seeds[0])
            action_E = np.array([pick_legal(space, m, np.random.default_rng(0)) for m in masks(env, observation, info)])
            if env is wrong:
                action_E[0] = space.start + space.n
            try:
                observation, reward_E, terminated_E, truncated_E, info = env.step(action_E)
            except Exception as error:
                raise AssertionError(
                    f"action {action_E[0]} of {space} in environment 0 raised {type(error).__name__}: {error}"
                ) from error
            found.append(
                Moment("a step with an illegal action", observation, info, reward_E, terminated_E, truncated_E)
            )
        assert found[0].info.get("illegal_action", [True])[0], (
            f"action {space.start + space.n} of {space} is out of range, but info['illegal_action'][0] is not set"
        )
        for e in range(1, case.num_envs):
            told = told_difference(_row_of(found[:1], e), _row_of(found[1:], e), case.measured, case.tolerance)
            assert told is None, f"an illegal action in environment 0 changed environment {e}: {told}"


def returned_arrays_stay(case: VectorCase) -> None:
    """What `reset` and `step` returned is not changed by later calls, so that it may be kept."""
    for mode in case.modes:
        held: list[tuple[Any, Any]] = []
        with closing(case.native(mode)) as native:
            moments = record_vector(native, case.seeds[0], case.steps, touch=lambda *data, held=held: held.append(data))
        for moment, (observation, info) in zip(moments, held, strict=True):
            told = difference(moment.observation, observation, measured=(), path="observation") or difference(
                moment.info, info, measured=(), path="info"
            )
            assert told is None, f"{mode}: what {moment.where} returned was changed by a later call: {told}"


def batched_masks_agree(case: VectorCase) -> None:
    """`action_masks()`, bool (E, n), is `info["action_mask"]`."""
    with closing(case.native()) as native:
        own = getattr(native, "action_masks", None)
        if own is None:
            return
        found: list[Any] = []
        moments = record_vector(native, case.seeds[0], case.steps, touch=lambda *data: found.append(own()))
        for moment, mask in zip(moments, found, strict=True):
            assert mask.dtype == np.bool_, f"action_masks() at {moment.where} is {mask.dtype}, not bool"
            told = difference(mask, np.asarray(moment.info["action_mask"]).astype(bool), path="action_masks()")
            assert told is None, f"at {moment.where}, {told}, which info['action_mask'] has"


def vector_step_needs_reset(case: VectorCase) -> None:
    """`step` ahead of the first `reset` raises `gymnasium.error.ResetNeeded`."""
    with closing(case.native()) as native:
        try:
            native.step(native.action_space.sample())
        except gym.error.ResetNeeded:
            return
        except Exception as error:
            raise AssertionError(
                f"step() ahead of reset() raised {type(error).__name__} ({error}), not gymnasium.error.ResetNeeded"
            ) from error
    raise AssertionError("step() ahead of reset() raised nothing, not gymnasium.error.ResetNeeded")


def vector_close_may_be_repeated(case: VectorCase) -> None:
    """`close` raises nothing, also a second time."""
    native = case.native()
    native.reset(seed=0)
    for time in ("first", "second"):
        try:
            native.close()
        except Exception as error:
            raise AssertionError(f"the {time} close() raised {type(error).__name__}: {error}") from error


VECTOR_CHECKS: tuple[Callable[[VectorCase], None], ...] = (
    spaces_and_mode_are_declared,
    trajectories_are_those_of_singles,
    observations_are_in_their_space,
    reset_mask_leaves_the_others,
    seeds_may_be_a_list,
    rows_do_not_depend_on_num_envs,
    a_row_s_illegal_action_is_its_own,
    returned_arrays_stay,
    batched_masks_agree,
    vector_step_needs_reset,
    vector_close_may_be_repeated,
)
"""All checks of a vector environment, in the order in which `check_vector_environment` runs them."""


def record_vector(
    env: Vector, seed: int | Sequence[int], steps: int, *, touch: Touch = lambda *data: None
) -> list[Moment]:
    """Reset and step on; ended environments are reset by mask where the mode is DISABLED.

    What environment e does depends on its own seed and masks alone.
    """
    seeds = [seed + e for e in range(env.num_envs)] if isinstance(seed, int) else list(seed)
    rngs = [np.random.default_rng(one) for one in seeds]
    space = env.single_action_space
    discrete = space if isinstance(space, gym.spaces.Discrete) else None
    env.action_space.seed(seeds[0])
    moments: list[Moment] = []

    def add(where: str, observation: Any, info: Any, *outcome: Any) -> None:
        moments.append(Moment(where, deepcopy(observation), deepcopy(info), *outcome))
        touch(observation, info)

    observation, info = _reset(env, seed)
    mask_E = masks(env, observation, info)
    add(f"reset(seed={seed})", observation, info)
    for t in range(steps):
        action_E = (
            env.action_space.sample()
            if discrete is None
            else np.array([pick_legal(discrete, mask, rng) for mask, rng in zip(mask_E, rngs, strict=True)])
        )
        observation, reward_E, terminated_E, truncated_E, info = env.step(action_E)
        mask_E = masks(env, observation, info)
        add(f"step {t}", observation, info, reward_E, terminated_E, truncated_E, action_E)
        ended_E = np.logical_or(moments[-1].terminated, moments[-1].truncated)
        if env.metadata.get("autoreset_mode") is AutoresetMode.DISABLED and ended_E.any():
            observation, info = env.reset(options={"reset_mask": ended_E.copy()})
            for e, mask in enumerate(masks(env, observation, info)):
                if ended_E[e]:
                    mask_E[e] = mask
            add(f"the reset by mask behind step {t}", observation, info)
    return moments


def masks(env: Vector, observation: Any, info: Mapping[str, Any]) -> list[Any]:
    """Each environment's mask of legal actions, copied; `None` where none is given."""
    mask_E = mask_of(observation, info)
    return [None] * env.num_envs if mask_E is None else [mask.copy() for mask in mask_E]


def row(batch: Any, e: int) -> Any:
    """One environment's part of a batched observation."""
    if isinstance(batch, dict):
        return {key: row(part, e) for key, part in batch.items()}
    return tuple(row(part, e) for part in batch) if isinstance(batch, tuple) else batch[e]


def _row_of(moments: Sequence[Moment], e: int) -> list[Moment]:
    """One environment's part of a walk."""
    return [
        Moment(
            moment.where,
            row(moment.observation, e),
            _info_row(moment.info, e),
            _of_row(moment.reward, e),
            _of_row(moment.terminated, e),
            _of_row(moment.truncated, e),
            None if moment.action is None else row(moment.action, e),
        )
        for moment in moments
    ]


def _of_row(part: Any, e: int) -> Any:
    """One environment's part of an array; what is no array belongs to a reset."""
    return part if np.ndim(part) == 0 else part[e]


def _info_row(info: Mapping[str, Any], e: int) -> dict[str, Any]:
    """One environment's part of a batched info: the keys that hold for it."""
    found: dict[str, Any] = {}
    for key, values in info.items():
        holds = info.get(f"_{key}")
        if holds is not None and holds[e]:
            found[key] = _info_row(values, e) if isinstance(values, dict) else values[e]
    return found


def _reset(env: Vector, seed: int | Sequence[int], options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Gymnasium's vector environments take a seed for each environment; the types of their base class do not."""
    return env.reset(seed=cast(Any, seed), options=options)
