"""Task ids as people write them: 7, "7" and "Mbpp/7" may name the same task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class IdFinder:
    """Finds among the ids of a set the one that a user's id names.

    A numbered task goes by its number too: where a set holds "own/1", the number 1 and the string "1" name it, and
    where it holds "1", so does "own/1". A name before the number must be the set's own: "HumanEval/1" never names
    "Mbpp/1".

    Args:
        ids: the ids of the set.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = set(ids)
        self._by_number: defaultdict[str, list[str]] = defaultdict(list)
        for task_id in self._ids:
            if number := _family_and_number(task_id)[1]:
                self._by_number[number].append(task_id)

    def find(self, given: object) -> str | None:
        """Return the id that `given` names; `None` when there is none, or when several may be meant."""
        if isinstance(given, str) and given in self._ids:
            return given
        family, number = _family_and_number(given)
        if not number:
            return None
        named = [task_id for task_id in self._by_number[number] if not family or not _family_and_number(task_id)[0]]
        return named[0] if len(named) == 1 else None


def _family_and_number(task_id: object) -> tuple[str, str]:
    """Return ("Mbpp", "7") for "Mbpp/7", ("", "7") for "7", 7 and 7.0 (as pandas writes it), ("", "") for others."""
    if isinstance(task_id, float) and task_id.is_integer():
        task_id = int(task_id)
    if isinstance(task_id, bool) or not isinstance(task_id, str | int):
        return "", ""
    family, _, number = str(task_id).rpartition("/")
    is_number = number.isascii() and number.isdecimal()
    return (family, number.lstrip("0") or "0") if is_number else ("", "")
