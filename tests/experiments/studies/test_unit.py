"""What a unit measures of its latents."""

from __future__ import annotations

import warnings

import pytest

from ra3gym.abstractions.latents import LatentPath
from ra3gym.experiments.studies.unit import normalized_mutual_information


def path(*latents: int) -> LatentPath:
    return LatentPath(latents, (True,) * len(latents))


def test_normalized_mutual_information() -> None:
    one, same, other = [path(0, 1, 1), path(2)], [path(1, 0, 0), path(5)], [path(0, 1, 2), path(2)]
    assert normalized_mutual_information(one, same) == pytest.approx(1.0)
    assert 0 < normalized_mutual_information(one, other) < 1


@pytest.mark.parametrize("lines", [1, 3, 7, 49, 1000])
def test_a_single_label_agrees_with_nothing(lines: int) -> None:
    """Whatever the rounding of its share, which should be 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normalized_mutual_information([path(*[0] * lines)], [path(*range(lines))]) == 0
