"""What an E-step is held to: latents for every line of every trace, by the traces and the generator alone.

E-steps live a layer above, so that this asks for nothing but their form: `infer(traces, rng)`, whose result has
`paths`, `names`, `metrics` and `gains`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ra3gym.tasks import ExpertTrace
from ra3gym.testing.comparing import MEASURED, difference


class Infers(Protocol):
    """What the check calls."""

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Any:
        """Annotations of the traces."""
        ...


def check_e_step(
    e_step: Infers,
    traces: Sequence[ExpertTrace],
    *,
    seed: int = 0,
    reads_planted_labels: bool = False,
    measured: frozenset[str] = MEASURED,
) -> None:
    """Hold an E-step against some traces; `AssertionError` names what is wrong, and in which trace.

    It infers three times: the result must fit the traces, be the same for the same generator, leave numpy's global
    generator alone, and not depend on planted labels.

    Args:
        e_step: any object with `infer(traces, rng)`.
        traces: a few dozen will do; planted labels make the check of them worth something.
        seed: of the generators.
        reads_planted_labels: an oracle is allowed to.
        measured: metrics that say how long something took, and may differ.
    """
    before = np.random.get_state()  # noqa: NPY002 - the very thing that is checked
    found = e_step.infer(traces, np.random.default_rng(seed))
    told = difference(before, np.random.get_state(), path="state")  # noqa: NPY002
    assert told is None, "infer() drew from numpy's global generator: draw from the `rng` that it is given"
    check_annotations(found, traces)
    again = e_step.infer(traces, np.random.default_rng(seed))
    _check_same(found, again, "the same traces and generator give other annotations the second time", measured)
    if not reads_planted_labels:
        blind = e_step.infer([trace.without_planted() for trace in traces], np.random.default_rng(seed))
        _check_same(found, blind, "infer() reads planted labels: without them it gives other annotations", measured)


def check_annotations(found: Any, traces: Sequence[ExpertTrace]) -> None:
    """Hold annotations against their traces: one latent for each line, all named, gains to match."""
    K = len(found.names)
    assert len(found.paths) == len(traces), f"{len(found.paths)} paths for {len(traces)} traces"
    for m, (path, trace) in enumerate(zip(found.paths, traces, strict=True)):
        where = f"the path of trace {m} ({trace.task.task_id!r})"
        lines, latents, switches = len(trace.steps), path.latents, path.switches
        assert len(latents) == len(switches) == lines, (
            f"{where} has {len(latents)} latents and {len(switches)} switches for {lines} lines"
        )
        assert switches[0], f"{where} does not start with a switch"
        for t, latent in enumerate(latents):
            assert isinstance(latent, (int, np.integer)), f"{where} has {latent!r} at line {t}, which is no number"
            assert 0 <= latent < K, f"{where} has latent {latent} at line {t}, but there are names for {K} latents"
            assert switches[t] or latent == latents[t - 1], (
                f"{where} goes from latent {latents[t - 1]} to {latent} at line {t} without a switch"
            )
    for k, names in enumerate(found.names):
        words = not isinstance(names, str) and all(isinstance(name, str) for name in names)
        assert words, f"the names of latent {k} are {names!r}: give a sequence of words, empty if there are none"
    for name, value in found.metrics.items():
        finite = np.ndim(value) == 0 and np.isfinite(float(value))
        assert finite, f"metric {name!r} is {value!r}, no finite number"
    if found.gains is not None:
        for m, (gains, trace) in enumerate(zip(found.gains, traces, strict=True)):
            assert len(gains) == len(trace.steps), f"{len(gains)} gains for {len(trace.steps)} lines in trace {m}"
            assert np.isfinite(gains).all(), f"a gain in trace {m} is not finite: {gains}"


def _check_same(found: Any, other: Any, complaint: str, measured: frozenset[str]) -> None:
    for name in ("paths", "names", "metrics", "gains"):
        one, two = getattr(found, name), getattr(other, name)
        if name == "metrics":
            one, two = dict(one), dict(two)
        told = difference(one, two, measured=measured, path=name)
        assert told is None, f"{complaint}: {told}"
