"""The oracle: planted labels as latents, an upper bound on the embedded domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import DataError
from ra3gym.tasks import ExpertTrace


class OracleEStep:
    """The planted labels as latents: an upper bound, never a method. Names come from co-occurrence with words."""

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `DataError` when there are no traces, or one carries no planted labels."""
        if not traces:
            raise DataError("there are no traces to infer latents over: the E-step needs at least one expert trace")
        paths = []
        for trace in traces:
            if trace.planted is None:
                raise DataError(
                    f"trace {trace.task.task_id!r} has no planted labels: the oracle needs a planted domain"
                )
            switches = [True, *(a != b for a, b in zip(trace.planted, trace.planted[1:], strict=False))]
            paths.append(LatentPath(trace.planted, tuple(switches)))
        num_latents = 1 + max(max(path.latents) for path in paths)
        return Annotations(paths=tuple(paths), names=names_by_company(traces, paths, num_latents))
