"""Which actions to keep: rules of pruning, the pruning theorem, and the error that pruning makes.

Each rule chooses a subset Z' of Z actions and returns a `PrunedActions` report: what it kept, by how many samples it
chose, how much of an expert it covers, and the pruning error as far as the `Evidence` determines it. `by_elimination`
is the pruning theorem's rule. `ra3gym.envs.wrappers.PruneActions` takes a report, or any subset.
"""

from ra3gym.abstractions.pruning.elimination import (
    by_elimination,
    candidate_errors,
    candidate_sets,
    samples_needed,
    smallest_good_set,
)
from ra3gym.abstractions.pruning.pruned_actions import Evidence, PrunedActions, assess
from ra3gym.abstractions.pruning.rules import (
    TokenCategory,
    at_random,
    by_expert_frequency,
    by_policy_mass,
    by_syntax,
    token_category,
)

__all__ = [
    "Evidence",
    "PrunedActions",
    "TokenCategory",
    "assess",
    "at_random",
    "by_elimination",
    "by_expert_frequency",
    "by_policy_mass",
    "by_syntax",
    "candidate_errors",
    "candidate_sets",
    "samples_needed",
    "smallest_good_set",
    "token_category",
]
