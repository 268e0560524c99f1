"""When a completion ends other than by an end token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class StopRule(Protocol):
    """Ends completions because of their content. `generate` asks it as the rows grow."""

    @property
    def watched_ids(self) -> Collection[int]:
        """The tokens after which a completion may end; the rule is asked only where one of them is the newest."""
        ...

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        """Whether row `row` of the batch ends after these tokens, the last of which is the newest."""
        ...
