"""Conformance suites for your own environment, vector environment, codebook, E-step or grader.

Each check is a small function that raises `AssertionError` and says what is wrong, and where. A `check_...` function
runs all of them. In a test file, a subclass of `EnvironmentConformance` or `VectorEnvironmentConformance` makes each
check a test.
"""

from ra3gym.testing.codebook import check_codebook
from ra3gym.testing.differences import difference
from ra3gym.testing.e_step import check_e_step
from ra3gym.testing.environment import ENVIRONMENT_CHECKS, EnvironmentCase
from ra3gym.testing.grader import check_grader
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
    "check_grader",
    "check_vector_environment",
    "difference",
]
