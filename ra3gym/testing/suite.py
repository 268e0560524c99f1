"""All checks of an environment in one call, or as tests: functions to call, and classes to subclass in a test file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from ra3gym.errors import UnknownNameError
from ra3gym.testing.differences import MEASURED
from ra3gym.testing.environment import ENVIRONMENT_CHECKS, EnvironmentCase
from ra3gym.testing.vector import VECTOR_CHECKS, Vector, VectorCase
from ra3gym.testing.walks import Env

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
    """Run every check of `ENVIRONMENT_CHECKS`.

    Args:
        make: an id for `gymnasium.make`, or a function that returns a new environment.
        kwargs: keywords for either.
        steps, seeds, tolerance, measured: see `EnvironmentCase`.
        skip: names of checks to leave out.

    Raises:
        AssertionError: the message names the first check that fails, what is wrong, and at which call.
        UnknownNameError: `skip` names no check.
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
    """Run every check of `VECTOR_CHECKS`.

    Args:
        make_single: an id, or a function that returns a new single environment.
        make_vector: returns a new vector environment from `num_envs` and `autoreset_mode`; by default
            `gymnasium.make_vec` with the id and `vectorization_mode="vector_entry_point"`.
        kwargs: keywords for both.
        num_envs, steps, seeds, modes, tolerance, measured: see `VectorCase`.
        skip: names of checks to leave out.

    Raises:
        AssertionError: the message names the first check that fails, what is wrong, and at which call.
        UnknownNameError: `skip` names no check.
        ValueError: `make_single` is not an id, and there is no `make_vector`.
    """
    if make_vector is None:
        if not isinstance(make_single, str):
            raise ValueError("make_vector=None needs an id as make_single: without an id, give make_vector")
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
    """Subclass it as `TestMyEnv` with a `make`; pytest then runs each check as a test named `test_<check>`.

    The class attributes are those of `EnvironmentCase`. `test_<check> = None` leaves a check out.
    """

    steps = 50
    seeds: tuple[int, ...] = (0, 1)
    measured = MEASURED
    tolerance = 0.0

    @abstractmethod
    def make(self, **kwargs: Any) -> Env:
        """Return a new environment. With a `render_mode` keyword, every mode of the metadata is tried."""

    def case(self) -> EnvironmentCase:
        """Return what the checks run on."""
        return EnvironmentCase(self.make, self.steps, self.seeds, self.measured, self.tolerance)


class VectorEnvironmentConformance(ABC):
    """Subclass it as `TestMyVectorEnv` with `make_single` and `make_vector`; each check is then a test `test_<check>`.

    The class attributes are those of `VectorCase`. `test_<check> = None` leaves a check out.
    """

    num_envs = 3
    steps = 40
    seeds: tuple[int, ...] = (0,)
    modes: tuple[AutoresetMode, ...] = tuple(AutoresetMode)
    tolerance = 0.0
    measured = MEASURED

    @abstractmethod
    def make_single(self) -> Env:
        """Return a new single environment."""

    @abstractmethod
    def make_vector(self, *, num_envs: int, autoreset_mode: str) -> Vector:
        """Return a new vector environment."""

    def case(self) -> VectorCase:
        """Return what the checks run on."""
        options = (self.num_envs, self.steps, self.seeds, self.modes, self.tolerance, self.measured)
        return VectorCase(self.make_single, self.make_vector, *options)


def _add_tests(suite: type[Any], checks: Iterable[Callable[[C], None]]) -> None:
    """Add one test method for each check to a class."""
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
    """Run one check; an error that the environment raises becomes an `AssertionError` too."""
    try:
        check(case)
    except AssertionError as failure:
        raise AssertionError(f"{check.__name__}: {failure}") from failure
    except Exception as error:
        raise AssertionError(f"{check.__name__}: the environment raised {type(error).__name__}: {error}") from error


_add_tests(EnvironmentConformance, ENVIRONMENT_CHECKS)
_add_tests(VectorEnvironmentConformance, VECTOR_CHECKS)
