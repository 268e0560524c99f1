"""A conformance suite to point at your own environment, vector environment, codebook or E-step.

Each check is a small function that raises `AssertionError`; the message names what is wrong, and where. Run all of them
with a `check_...` function, or subclass `EnvironmentConformance` or `VectorEnvironmentConformance` in a test file, so
that each is a test of its own.
"""

from ra3gym.testing.codebook import check_codebook
from ra3gym.testing.comparing import difference
from ra3gym.testing.e_step import check_e_step
from ra3gym.testing.environment import ENVIRONMENT_CHECKS, EnvironmentCase
from ra3gym.testing.suite import (
    EnvironmentConformance,
    VectorEnvironmentConformance,
    check_environment,
    check_vector_environment,
)
from ra3gym.testing.vector import VECTOR_CHECKS, VectorCase

__all__ = [
    "ENVIRONMENT_CHECKS",
    "VECTOR_CHECKS",
    "EnvironmentCase",
    "EnvironmentConformance",
    "VectorCase",
    "VectorEnvironmentConformance",
    "check_codebook",
    "check_e_step",
    "check_environment",
    "check_vector_environment",
    "difference",
]
