"""Wrappers: fewer actions (`PruneActions`), and log-probabilities as observations (`LogprobObservation`)."""

from ra3gym.envs.wrappers.logprobs import LogprobObservation
from ra3gym.envs.wrappers.pruning import PruneActions, PruneVectorActions

__all__ = ["LogprobObservation", "PruneActions", "PruneVectorActions"]
