"""What a vector environment must satisfy: it behaves like `SyncVectorEnv`, and its rows are independent.

Shape letters: see CONTRIBUTING.md (E environments).
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

from ra3gym.testing.differences import MEASURED, difference
from ra3gym.testing.walks import Env, Moment, Touch, deep_copy, mask_of, misfit, pick_legal, walk_difference

Vector: TypeAlias = gym.vector.VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class VectorCase:
    """What the checks run on.

    Attributes:
        make_single: returns a new single environment.
        make_vector: returns a new vector environment; called with `num_envs=` and `autoreset_mode=`, the latter as
            Gymnasium spells it ("NextStep", ...).
        num_envs: at least 2, so that rows can affect each other.
        steps: length of each walk; large enough for several episodes to end.
        seeds: seeds of the walks.
        modes: autoreset modes that the environment supports.
        tolerance: absolute and relative tolerance between batches of different sizes, whose arithmetic may round
            differently; 0 compares exactly.
        measured: see `EnvironmentCase`.
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
        """Return a new vector environment in a mode, by default the first."""
        return self.make_vector(num_envs=num_envs or self.num_envs, autoreset_mode=(mode or self.modes[0]).value)

    def sync(self, mode: AutoresetMode) -> Vector:
        """Return Gymnasium's own vector environment over single ones."""
        return SyncVectorEnv([self.make_single] * self.num_envs, autoreset_mode=mode)


def spaces_and_mode_are_declared(case: VectorCase) -> None:
    """Spaces are the batched ones of the single environment; `metadata["autoreset_mode"]` is the requested mode."""
    with closing(case.make_single()) as single:
        for mode in case.modes:
            with closing(case.native(mode)) as native:
                declared = native.metadata.get("autoreset_mode")
                assert declared is mode, f"made with autoreset_mode={mode}, its metadata has {declared!r}"
                assert native.num_envs == case.num_envs, f"num_envs is {native.num_envs}, not {case.num_envs}"
                for name in ("observation_space", "action_space"):
                    expected = getattr(single, name)
                    one, batched = getattr(native, f"single_{name}"), getattr(native, name)
                    assert one == expected, f"single_{name} is {one}; the single environment has {expected}"
                    assert batched == batch_space(expected, case.num_envs), (
                        f"{name} is {batched}, not {batch_space(expected, case.num_envs)}"
                    )


def trajectories_equal_sync_vector_env(case: VectorCase) -> None:
    """In each mode, observations, rewards, flags and infos equal those of `SyncVectorEnv`."""
    for mode in case.modes:
        for seed in case.seeds:
            with closing(case.native(mode)) as native, closing(case.sync(mode)) as sync:
                ours, theirs = record_vector(native, seed, case.steps), record_vector(sync, seed, case.steps)
            found = walk_difference(ours, theirs, case.measured, case.tolerance)
            assert found is None, f"{mode}: SyncVectorEnv returns something else: {found}"
            ended = sum(np.logical_or(moment.terminated, moment.truncated).sum() for moment in ours)
            assert ended >= 1, f"no episode ended within steps={case.steps}: raise steps"


def observations_are_in_their_space(case: VectorCase) -> None:
    """Batched observations are in the batched space, dtype included."""
    with closing(case.native()) as native:
        for moment in record_vector(native, case.seeds[0], case.steps):
            if found := misfit(native.observation_space, moment.observation):
                raise AssertionError(f"at {moment.call}, {found}")


def reset_mask_leaves_other_rows(case: VectorCase) -> None:
    """`reset(options={"reset_mask": ...})` resets the rows of the mask and no others, as in `SyncVectorEnv`."""
    if AutoresetMode.DISABLED not in case.modes:
        return
    chosen_E = np.arange(case.num_envs) % 2 == 0
    resets = []
    for make in (case.native, case.sync):
        with closing(make(AutoresetMode.DISABLED)) as env:
            before = record_vector(env, case.seeds[0], 1)[-1]
            options = {"reset_mask": chosen_E.copy()}
            observation, info = _reset(env, [100 + e for e in range(case.num_envs)], options)
            resets.append([Moment("reset with a reset_mask", deepcopy(observation), deepcopy(info))])
            for e in np.flatnonzero(~chosen_E).tolist():
                found = difference(row(before.observation, e), row(observation, e), path="observation")
                assert found is None, f"reset_mask is False for environment {e}, but its observation changed: {found}"
    found = walk_difference(resets[0], resets[1], case.measured, case.tolerance)
    assert found is None, f"SyncVectorEnv returns something else: {found}"


def seeds_may_be_a_list(case: VectorCase) -> None:
    """`reset(seed=s)` seeds environment e with `s + e`; a list must hold one seed for each environment."""
    seed, E = case.seeds[0], case.num_envs
    with closing(case.native()) as one, closing(case.native()) as other:
        first = record_vector(one, seed, case.steps)
        second = record_vector(other, [seed + e for e in range(E)], case.steps)
        found = walk_difference(first, second, case.measured)
        assert found is None, f"reset(seed={seed}) differs from reset(seed=[{seed}, {seed + 1}, ...]): {found}"
        refused = False
        try:
            _reset(one, [0] * (E + 1))
        except Exception:  # Gymnasium defines no error type here; its own vector environments assert
            refused = True
        assert refused, f"reset() accepted {E + 1} seeds for {E} environments"
        found = walk_difference(first, record_vector(one, seed, case.steps), case.measured)
        assert found is None, f"a refused reset with {E + 1} seeds for {E} environments changed the next one: {found}"


def rows_do_not_depend_on_num_envs(case: VectorCase) -> None:
    """Environment e with seed s + e behaves like a vector of one environment with that seed."""
    seed = case.seeds[0]
    with closing(case.native()) as many:
        whole = record_vector(many, seed, case.steps)
    for e in range(case.num_envs):
        with closing(case.native(num_envs=1)) as alone:
            single = record_vector(alone, seed + e, case.steps)
        found = walk_difference(_row_of(whole, e), _row_of(single, 0), case.measured, case.tolerance)
        assert found is None, f"environment {e} of {case.num_envs} behaves differently alone: {found}"


def illegal_actions_leave_other_rows(case: VectorCase) -> None:
    """An out-of-range action in one environment raises nothing and changes nothing in the others."""
    with closing(case.native()) as wrong, closing(case.native()) as right:
        space = wrong.single_action_space
        if not isinstance(space, gym.spaces.Discrete):
            return
        steps = []
        for env in (wrong, right):
            observation, info = env.reset(seed=case.seeds[0])
            mask_E = masks(env, observation, info)
            action_E = np.array([pick_legal(space, mask, np.random.default_rng(0)) for mask in mask_E])
            if env is wrong:
                action_E[0] = space.start + space.n
            try:
                observation, reward_E, terminated_E, truncated_E, info = env.step(action_E)
            except Exception as error:
                raise AssertionError(
                    f"action {action_E[0]} of {space} in environment 0 raised {type(error).__name__}: {error}"
                ) from error
            steps.append(
                Moment("a step with an illegal action", observation, info, reward_E, terminated_E, truncated_E)
            )
        assert steps[0].info.get("illegal_action", [True])[0], (
            f"action {space.start + space.n} of {space} is out of range, but info['illegal_action'][0] is not set"
        )
        for e in range(1, case.num_envs):
            found = walk_difference(_row_of(steps[:1], e), _row_of(steps[1:], e), case.measured, case.tolerance)
            assert found is None, f"an illegal action in environment 0 changed environment {e}: {found}"


def returned_arrays_are_not_changed(case: VectorCase) -> None:
    """Later calls do not change what `reset` and `step` have returned, so a caller may keep it."""
    for mode in case.modes:
        returned: list[tuple[Any, Any]] = []
        with closing(case.native(mode)) as native:
            moments = record_vector(
                native,
                case.seeds[0],
                case.steps,
                touch=lambda *data, returned=returned: returned.append(data),
            )
        for moment, (observation, info) in zip(moments, returned, strict=True):
            found = difference(moment.observation, observation, measured=(), path="observation") or difference(
                moment.info, info, measured=(), path="info"
            )
            assert found is None, f"{mode}: what {moment.call} returned was changed by a later call: {found}"


def batched_masks_agree(case: VectorCase) -> None:
    """`action_masks()` is bool (E, A) and equals `info["action_mask"]`."""
    with closing(case.native()) as native:
        own = getattr(native, "action_masks", None)
        if own is None:
            return
        mask_list: list[Any] = []
        moments = record_vector(native, case.seeds[0], case.steps, touch=lambda *data: mask_list.append(own()))
        for moment, mask in zip(moments, mask_list, strict=True):
            assert mask.dtype == np.bool_, f"action_masks() at {moment.call} is {mask.dtype}, not bool"
            found = difference(mask, np.asarray(moment.info["action_mask"]).astype(bool), path="action_masks()")
            assert found is None, f"action_masks() differs from info['action_mask'] at {moment.call}: {found}"


def vector_step_needs_reset(case: VectorCase) -> None:
    """`step` before the first `reset` raises `gymnasium.error.ResetNeeded`."""
    with closing(case.native()) as native:
        try:
            native.step(native.action_space.sample())
        except gym.error.ResetNeeded:
            return
        except Exception as error:
            raise AssertionError(
                f"step() before reset() raised {type(error).__name__} ({error}), not gymnasium.error.ResetNeeded"
            ) from error
    raise AssertionError("step() before reset() raised nothing, not gymnasium.error.ResetNeeded")


def vector_close_may_be_repeated(case: VectorCase) -> None:
    """`close` raises nothing, the second time too."""
    native = case.native()
    native.reset(seed=0)
    for time in ("first", "second"):
        try:
            native.close()
        except Exception as error:
            raise AssertionError(f"the {time} close() raised {type(error).__name__}: {error}") from error


def deep_copies_of_all_rows_continue_alike(case: VectorCase) -> None:
    """A deep copy in mid-episode continues like the vector environment, and neither changes the other."""
    seed = case.seeds[0]
    with closing(case.native()) as env:
        begun = record_vector(env, seed, 2)[-1]
        copies = [deep_copy(env), deep_copy(env)]
        walks = []
        for one in (*copies, env):  # one after the other: each is closed before the next walks
            with closing(one):
                walks.append(record_vector(one, seed, case.steps, after=begun))
    for other, name in zip(walks[1:], ("another deep copy", "the environment"), strict=True):
        found = walk_difference(walks[0], other, case.measured, case.tolerance)
        assert found is None, f"{name} continues otherwise than the first deep copy, used and closed before: {found}"


VECTOR_CHECKS: tuple[Callable[[VectorCase], None], ...] = (
    spaces_and_mode_are_declared,
    trajectories_equal_sync_vector_env,
    observations_are_in_their_space,
    reset_mask_leaves_other_rows,
    seeds_may_be_a_list,
    rows_do_not_depend_on_num_envs,
    illegal_actions_leave_other_rows,
    returned_arrays_are_not_changed,
    batched_masks_agree,
    vector_step_needs_reset,
    vector_close_may_be_repeated,
    deep_copies_of_all_rows_continue_alike,
)
"""All checks of a vector environment, in the order in which `check_vector_environment` runs them."""


def record_vector(
    env: Vector,
    seed: int | Sequence[int],
    steps: int,
    *,
    touch: Touch = lambda *data: None,
    after: Moment | None = None,
) -> list[Moment]:
    """Reset with a seed, take `steps` steps, and return all moments; in mode DISABLED ended rows are reset by mask.

    The actions of environment e depend on its own seed and masks alone. With `after`, the last moment of an earlier
    walk, there is no reset at the beginning.
    """
    seeds = [seed + e for e in range(env.num_envs)] if isinstance(seed, int) else list(seed)
    rngs = [np.random.default_rng(row_seed) for row_seed in seeds]
    space = env.single_action_space
    discrete = space if isinstance(space, gym.spaces.Discrete) else None
    env.action_space.seed(seeds[0])
    moments: list[Moment] = []

    def add(call: str, observation: Any, info: Any, *outcome: Any) -> None:
        moments.append(Moment(call, deepcopy(observation), deepcopy(info), *outcome))
        touch(observation, info)

    observation, info = _reset(env, seed) if after is None else (after.observation, after.info)
    mask_E = masks(env, observation, info)
    if after is None:
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
            add(f"the reset by mask after step {t}", observation, info)
    return moments


def masks(env: Vector, observation: Any, info: Mapping[str, Any]) -> list[Any]:
    """Return a copy of each environment's mask of legal actions; `None` each when there are no masks."""
    mask_E = mask_of(observation, info)
    return [None] * env.num_envs if mask_E is None else [mask.copy() for mask in mask_E]


def row(batch: Any, e: int) -> Any:
    """Return one environment's part of a batched observation."""
    if isinstance(batch, dict):
        return {key: row(part, e) for key, part in batch.items()}
    return tuple(row(part, e) for part in batch) if isinstance(batch, tuple) else batch[e]


def _row_of(moments: Sequence[Moment], e: int) -> list[Moment]:
    """Return one environment's part of a walk."""
    return [
        Moment(
            moment.call,
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
    """Return one environment's part of an array; a scalar, which comes from a reset, as it is."""
    return part if np.ndim(part) == 0 else part[e]


def _info_row(info: Mapping[str, Any], e: int) -> dict[str, Any]:
    """Return one environment's part of a batched info: the keys that this environment has."""
    row_info: dict[str, Any] = {}
    for key, values in info.items():
        has_E = info.get(f"_{key}")
        if has_E is not None and has_E[e]:
            row_info[key] = _info_row(values, e) if isinstance(values, dict) else values[e]
    return row_info


def _reset(env: Vector, seed: int | Sequence[int], options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Reset with one seed or one for each environment, which the types of Gymnasium's base class leave out."""
    return env.reset(seed=cast(Any, seed), options=options)
