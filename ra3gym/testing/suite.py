"""The checks, all at once or as tests: functions to call, and classes to subclass in a test file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from ra3gym.errors import UnknownNameError
from ra3gym.testing.comparing import MEASURED
from ra3gym.testing.environment import ENVIRONMENT_CHECKS, EnvironmentCase
from ra3gym.testing.vector import VECTOR_CHECKS, Vector, VectorCase
from ra3gym.testing.walking import Env

C = TypeVar("C")


def check_environment(
    make: str | Callable[..., Env],
    kwargs: Mapping[str, Any] | None = None,
    *,
    steps: int = 50,
    seeds: Sequence[int] = (0, 1),
    skip: Collection[str] = (),
    tolerance: float = 0.0,
    measured: Collection[str] = MEASURED,
) -> None:
    """Run every check of `ENVIRONMENT_CHECKS`; `AssertionError` names the first that fails, what is wrong, and where.

    Args:
        make: an id for `gymnasium.make`, or what makes a new environment with each call.
        kwargs: keywords for either.
        steps: of each walk; enough for an episode to end.
        seeds: one walk each.
        skip: names of checks to leave out.
        tolerance: of a pickled copy, absolute and relative; see `EnvironmentCase`.
        measured: keys of infos, and fields of dataclasses in them, that say how long something took.
    """
    made = partial(gym.make, make) if isinstance(make, str) else make
    case = EnvironmentCase(partial(made, **(kwargs or {})), steps, tuple(seeds), frozenset(measured), tolerance)
    _run_all(ENVIRONMENT_CHECKS, case, skip)


def check_vector_environment(
    make_single: str | Callable[..., Env],
    make_vector: Callable[..., Vector] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_envs: int = 3,
    steps: int = 40,
    seeds: Sequence[int] = (0,),
    modes: Sequence[AutoresetMode | str] = tuple(AutoresetMode),
    tolerance: float = 0.0,
    skip: Collection[str] = (),
    measured: Collection[str] = MEASURED,
) -> None:
    """Run every check of `VECTOR_CHECKS`; `AssertionError` names the first that fails, what is wrong, and where.

    Args:
        make_single: an id, or what makes a new single environment with each call.
        make_vector: takes `num_envs` and `autoreset_mode`; by default `gymnasium.make_vec` with the id and
            `vectorization_mode="vector_entry_point"`.
        kwargs: keywords for both.
        num_envs: at least 2, so that rows can disturb each other.
        steps: of each walk; enough for several episodes to end.
        seeds: one walk each.
        modes: the autoreset modes that it supports.
        tolerance: absolute and relative, for models whose arithmetic rounds by the size of the batch; 0 is exact.
        skip, measured: as in `check_environment`.

    Raises:
        ValueError: no `make_vector`, where `make_single` is no id.
    """
    if make_vector is None:
        if not isinstance(make_single, str):
            raise ValueError("make_vector=None needs an id as make_single: without one, say how a vector is made")
        make_vector = partial(gym.make_vec, make_single, vectorization_mode="vector_entry_point")
    single = partial(gym.make, make_single) if isinstance(make_single, str) else make_single
    options = dict(kwargs or {})
    case = VectorCase(
        partial(single, **options),
        partial(make_vector, **options),
        num_envs,
        steps,
        tuple(seeds),
        tuple(map(AutoresetMode, modes)),
        tolerance,
        frozenset(measured),
    )
    _run_all(VECTOR_CHECKS, case, skip)


class EnvironmentConformance(ABC):
    """Subclass it as `TestMyEnv` with a `make`, and pytest runs each check as a test named `test_<check>`.

    `steps`, `seeds`, `measured` and `tolerance` are those of `EnvironmentCase`; `test_<check> = None` leaves one out.
    """

    steps = 50
    seeds: tuple[int, ...] = (0, 1)
    measured = MEASURED
    tolerance = 0.0

    @abstractmethod
    def make(self, **kwargs: Any) -> Env:
        """A new environment; take `render_mode` to have every mode of the metadata tried."""

    def case(self) -> EnvironmentCase:
        """What the checks get."""
        return EnvironmentCase(self.make, self.steps, self.seeds, self.measured, self.tolerance)


class VectorEnvironmentConformance(ABC):
    """Subclass it as `TestMyVectorEnv` with `make_single` and `make_vector`; each check of `VECTOR_CHECKS` is a test.

    The attributes are those of `VectorCase`; `test_<check> = None` leaves one out.
    """

    num_envs = 3
    steps = 40
    seeds: tuple[int, ...] = (0,)
    modes: tuple[AutoresetMode, ...] = tuple(AutoresetMode)
    tolerance = 0.0
    measured = MEASURED

    @abstractmethod
    def make_single(self) -> Env:
        """A new single environment."""

    @abstractmethod
    def make_vector(self, *, num_envs: int, autoreset_mode: str) -> Vector:
        """A new vector environment."""

    def case(self) -> VectorCase:
        """What the checks get."""
        options = (self.num_envs, self.steps, self.seeds, self.modes, self.tolerance, self.measured)
        return VectorCase(self.make_single, self.make_vector, *options)


def _add_tests(suite: type[Any], checks: Iterable[Callable[[C], None]]) -> None:
    """Give a class one test method for each check."""
    for check in checks:

        def test(self: Any, check: Callable[[C], None] = check) -> None:
            _run(check, self.case())

        test.__name__, test.__doc__ = f"test_{check.__name__}", check.__doc__
        setattr(suite, test.__name__, test)


def _run_all(checks: Sequence[Callable[[C], None]], case: C, skip: Collection[str]) -> None:
    known = [check.__name__ for check in checks]
    for name in skip:
        if name not in known:
            raise UnknownNameError("check", name, known)
    for check in checks:
        if check.__name__ not in skip:
            _run(check, case)


def _run(check: Callable[[C], None], case: C) -> None:
    """One check; whatever the environment raises in it becomes an `AssertionError` too."""
    try:
        check(case)
    except AssertionError as failure:
        raise AssertionError(f"{check.__name__}: {failure}") from failure
    except Exception as error:
        raise AssertionError(f"{check.__name__}: the environment raised {type(error).__name__}: {error}") from error


_add_tests(EnvironmentConformance, ENVIRONMENT_CHECKS)
_add_tests(VectorEnvironmentConformance, VECTOR_CHECKS)
