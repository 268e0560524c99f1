"""A sound environment and a sound vector form, and what the conformance suite must catch: each broken in many ways."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv


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

    reused = None

    def info(self) -> dict[str, Any]:
        if self.reused is None:
            self.reused = np.zeros(2, dtype=np.int8)
        self.reused[:] = self.action_masks()
        return {"nested": {"mask": self.reused}}


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


class HoldsALock(Walk):
    """What cannot be pickled comes with the first step, as a judge's processes do."""

    def step(self, action: Any) -> Any:
        self.lock = threading.Lock()
        return super().step(action)


class IsItsCopy(Walk):
    def __deepcopy__(self, memo: dict[int, Any]) -> IsItsCopy:
        return self


class CopiesNothing(Walk):
    def __deepcopy__(self, memo: dict[int, Any]) -> Walk:
        raise RuntimeError("only leaves can be copied")


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


class RefusesLate(NativeWalk):
    """Refused seeds leave a trace."""

    shift = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = [seed + e for e in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            self.shift = 1000
        return super().reset(seed=seeds and [one + self.shift for one in seeds], options=options)


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


class SharesItsRows(NativeWalk):
    def __deepcopy__(self, memo: dict[int, Any]) -> SharesItsRows:
        return self


class OtherSpace(NativeWalk):
    def __init__(self, kind: type[Walk], num_envs: int, autoreset_mode: str) -> None:
        super().__init__(kind, num_envs, autoreset_mode)
        self.observation_space = gym.spaces.Box(0.0, 9.0, (num_envs, 2), np.float64)


MUTANTS = [
    (Unseeded, "seeds_decide_everything", r"info\['luck'\]: .* is not .*, at reset\(seed=0\)"),
    (OtherDtype, "data_fits_its_spaces", "the observation is float16 .* the space has float32"),
    (MaskTooOpen, "masks_agree", r"action_masks\(\) and info\['action_mask'\] differ at .*, in action 1"),
    (MasksTooOpen, "legal_actions_are_accepted", "took action 1, which the mask allows"),
    (MaskTooTight, "illegal_actions_are_reported", r"took action 1, .* info\['illegal_action'\] is False"),
    (NothingLegal, "masks_agree", r"info\['action_mask'\] at reset\(seed=0\) allows no action"),
    (MaskOfInt64, "masks_agree", "is int64, not int8"),
    (ReusedMask, "returned_data_is_not_changed", r"info\['nested'\]\['mask'\]\[\d\]"),
    (
        ReusedObservation,
        "returned_data_is_not_changed",
        r"reset\(seed=0\) returned was changed by a later call: observation\[0\]",
    ),
    (LeansOnWhatItReturned, "returned_data_may_be_overwritten", "after a caller has overwritten returned data"),
    (RaisesOnIllegal, "illegal_actions_are_reported", "raised InvalidAction: no"),
    (WalksOn, "step_needs_reset", r"step\(\) before the first reset\(\) raised (nothing|AttributeError)"),
    (RememberingReset, "reset_forgets_the_episode", r"after a reset in mid-episode: observation\[1\]"),
    (ClosesOnce, "close_may_be_repeated", r"the second close\(\) raised RuntimeError: closed already"),
    (PicklesWrong, "pickled_copies_behave_the_same", r"after pickling: info\['forgotten'\]: False is not True"),
    (HoldsALock, "pickled_copies_behave_the_same", "after 50 steps it cannot be pickled: TypeError: cannot pickle"),
    (IsItsCopy, "deep_copies_continue_alike", "in a deep copy, after another deep copy was used and closed"),
    (CopiesNothing, "deep_copies_continue_alike", "in mid-episode it cannot be deep-copied: RuntimeError: only leaves"),
    (RendersFloats, "renders_what_it_declares", r"'rgb_array' returned float64 of shape \(4, 6, 3\)"),
    (RendersNothing, "renders_what_it_declares", "'ansi' returned NoneType, not str"),
    (TerminatedAndTruncated, "data_fits_its_spaces", "both terminated and truncated"),
    (NotANumber, "data_fits_its_spaces", "the reward nan is not a finite number"),
    (UnboundedWalk, "gymnasiums_own_check", "^gymnasiums_own_check: check_env raised or warned: WARN: A Box"),
]
"""The class, the check that catches it, and what the message says."""

VECTOR_MUTANTS = [
    (SaysAnotherMode, "spaces_and_mode_are_declared", "its metadata has <AutoresetMode.NEXT_STEP"),
    (WrongFinal, "trajectories_equal_sync_vector_env", r"SAME_STEP: .*info\['final_obs'\]\[\d\]"),
    (OtherSpace, "observations_are_in_their_space", "the observation is float32 .* the space has float64"),
    (ResetsAll, "reset_mask_leaves_other_rows", "reset_mask is False for environment 1, but its observation changed"),
    (SharedSeed, "seeds_may_be_a_list", r"reset\(seed=0\) differs from reset\(seed=\[0, 1, ...\]\)"),
    (RefusesLate, "seeds_may_be_a_list", "a refused reset with 4 seeds for 3 environments changed the next one"),
    (SeedsByNumber, "rows_do_not_depend_on_num_envs", "environment 0 of 3 behaves differently alone"),
    (Spills, "illegal_actions_leave_other_rows", "an illegal action in environment 0 changed environment 1"),
    (SharesItsBuffer, "returned_arrays_are_not_changed", r"reset\(seed=0\) returned was changed by a later call"),
    (WrongMasks, "batched_masks_agree", r"action_masks\(\) differs from info\['action_mask'\]"),
    (StepsUnasked, "vector_step_needs_reset", "raised nothing"),
    (ClosesNativeOnce, "vector_close_may_be_repeated", "the second close"),
    (SharesItsRows, "deep_copies_of_all_rows_continue_alike", "another deep copy continues otherwise than the first"),
]
"""The class, the check that catches it, and what the message says."""
