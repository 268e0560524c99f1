"""What an E-step must satisfy: latents for every line of every trace, from the traces and the generator alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ra3gym.tasks import ExpertTrace
from ra3gym.testing.differences import MEASURED, difference

if TYPE_CHECKING:  # annotations and E-steps import torch
    from ra3gym.abstractions.latents.annotations import Annotations
    from ra3gym.agents.mid_training import EStep


def check_e_step(
    e_step: EStep | Callable[[], EStep],
    traces: Sequence[ExpertTrace],
    *,
    seed: int = 0,
    reads_planted_labels: bool = False,
    measured: frozenset[str] = MEASURED,
) -> None:
    """Check an E-step on some traces by three calls of `infer`.

    The annotations must fit the traces, be the same for the same generator state, not depend on planted labels, and
    leave numpy's global generator unchanged.

    Args:
        e_step: an object with `infer(traces, rng)`; or, for an E-step that learns from call to call, a function that
            returns a new one.
        traces: a few dozen suffice; planted labels in them make the third check meaningful.
        seed: seed of the generators.
        reads_planted_labels: whether the E-step may read planted labels, as an oracle does.
        measured: names of metrics that say how long something took, and may differ.

    Raises:
        AssertionError: the message names what is wrong, and in which trace.
    """

    def infer(given: Sequence[ExpertTrace]) -> Annotations:
        fresh: EStep = e_step() if callable(e_step) else e_step
        return fresh.infer(given, np.random.default_rng(seed))

    before = np.random.get_state()  # noqa: NPY002 - the E-step must not change this old global generator
    annotations = infer(traces)
    changed = difference(before, np.random.get_state(), path="state")  # noqa: NPY002
    assert changed is None, "infer() drew from numpy's global generator: draw from the `rng` argument"
    check_annotations(annotations, traces)
    _check_same(
        annotations, infer(traces), "the same traces and generator give other annotations the second time", measured
    )
    if not reads_planted_labels:
        unlabeled = [trace.without_planted() for trace in traces]
        _check_same(
            annotations, infer(unlabeled), "infer() reads planted labels: without them its annotations differ", measured
        )


def check_annotations(annotations: Annotations, traces: Sequence[ExpertTrace]) -> None:
    """Check annotations against their traces: latents, switches, names, metrics, gains.

    Raises:
        AssertionError: the message names what is wrong, and in which trace.
    """
    num_latents = len(annotations.names)
    assert len(annotations.paths) == len(traces), f"{len(annotations.paths)} paths for {len(traces)} traces"
    for m, (path, trace) in enumerate(zip(annotations.paths, traces, strict=True)):
        name = f"the path of trace {m} ({trace.task.task_id!r})"
        lines, latents, switches = len(trace.steps), path.latents, path.switches
        assert len(latents) == len(switches) == lines, (
            f"{name} has {len(latents)} latents and {len(switches)} switches for {lines} lines"
        )
        assert switches[0], f"{name} does not start with a switch"
        for t, latent in enumerate(latents):
            assert isinstance(latent, (int, np.integer)), f"{name} has {latent!r} at line {t}, not an integer"
            assert 0 <= latent < num_latents, (
                f"{name} has latent {latent} at line {t}, but there are names for {num_latents} latents"
            )
            assert switches[t] or latent == latents[t - 1], (
                f"{name} goes from latent {latents[t - 1]} to {latent} at line {t} without a switch"
            )
    names: Any
    for latent, names in enumerate(annotations.names):
        words = not isinstance(names, str) and all(isinstance(name, str) for name in names)
        assert words, f"the names of latent {latent} are {names!r}: give a sequence of words, empty if there are none"
    for name, value in annotations.metrics.items():
        finite = np.ndim(value) == 0 and np.isfinite(float(value))
        assert finite, f"metric {name!r} is {value!r}, not a finite number"
    for m, gains in enumerate(annotations.gains or ()):
        assert np.isfinite(gains).all(), f"a gain in trace {m} is not finite: {gains}"


def _check_same(one: Annotations, other: Annotations, complaint: str, measured: frozenset[str]) -> None:
    """Check that two annotations are equal; `complaint` starts the message."""
    for name in ("paths", "names", "metrics", "gains", "comments"):
        first, second = getattr(one, name), getattr(other, name)
        if name == "metrics":
            first, second = dict(first), dict(second)
        found = difference(first, second, measured=measured, path=name)
        assert found is None, f"{complaint}: {found}"
