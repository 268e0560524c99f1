"""Checks that stop a run whose training has failed, and signals that ask it to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.rollouts.collecting import Collected
from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.errors import DataError, TrainingDiverged

_SOLVED = 0.95
"""From this pass rate on, low entropy is no failure."""


class Health:
    """Checks each step of a run for a collapsed policy.

    Args:
        config: `min_entropy` and `patience`.
    """

    def __init__(self, config: RLVRConfig) -> None:
        self._config = config
        self._low = 0

    def check(self, step: RLVRStep) -> None:
        """Raise `TrainingDiverged` when the policy has been nearly deterministic, and wrong, for `patience` steps."""
        collapsed = step.entropy < self._config.min_entropy and step.pass_rate < _SOLVED
        self._low = self._low + 1 if collapsed else 0
        if self._low >= self._config.patience:
            raise TrainingDiverged(
                f"the policy collapsed: its entropy has been below min_entropy={self._config.min_entropy:g} nats a "
                f"token for {self._low} steps (now {step.entropy:.2g}) at a pass rate of {step.pass_rate:.0%}, so all "
                "programs of a task are alike and there is nothing to learn from. Return to an earlier checkpoint with "
                "a lower learning_rate, an entropy_coefficient or KL to the reference; min_entropy=0 never stops"
            )


def not_finite(step: int, problem: object, last: RLVRStep | None) -> TrainingDiverged:
    """Return the error for a gradient, or a sampled log-probability, that is NaN or infinite at a step."""
    before = "it was the first step" if last is None else f"the previous step had gradient norm {last.grad_norm:.3g}"
    return TrainingDiverged(
        f"step {step}: {problem} is not finite, and {before}. The weights are those of the previous step. Lower "
        "learning_rate or max_grad_norm, raise warmup_steps, or use precision='float32'; resume=True continues from "
        "the last checkpoint"
    )


class TooFewRewards(DataError):
    """More programs of a step than `max_ungraded` allows have no reward."""


def check_graded(
    collected: Collected, step: int, most: float, sums_over_ranks: Callable[..., dict[str, float]]
) -> None:
    """Raise `TooFewRewards`, on all ranks, when more than the share `most` of a step's programs has no reward."""
    total = sums_over_ranks(ungraded=len(collected.ungraded), rows=collected.rows)
    if total["ungraded"] > most * total["rows"]:
        place = f"the first is for task {collected.ungraded[0]!r}" if collected.ungraded else "of other processes"
        raise TooFewRewards(
            f"step {step}: {total['ungraded']:.0f} of {total['rows']:.0f} programs have no reward, more than "
            f"max_ungraded={most:g} of them; {place}. The reward raised an exception (see the warning) or gave None, "
            "NaN or an infinity: rewards are finite numbers"
        )


class StopRequest:
    """Remembers that the run was asked to stop, by Ctrl-C or a scheduler's SIGTERM."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first SIGINT or SIGTERM as a request; the second one has its usual effect.

        Only the main thread receives signals: in other threads this changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
