"""Which task an id names that a user writes."""

from __future__ import annotations

from typing import Any

import pytest

from ra3gym.tasks.ids import IdFinder

IDS = ["Mbpp/2", "Mbpp/11", "Both/3", "Other/3", "5", "name", "a/b/7"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Mbpp/2", "Mbpp/2"),
        (2, "Mbpp/2"),
        ("2", "Mbpp/2"),
        (2.0, "Mbpp/2"),
        ("002", "Mbpp/2"),
        ("HumanEval/2", None),  # another set's
        (3, None),  # two tasks have this number
        ("Both/3", "Both/3"),
        (5, "5"),
        ("own/5", "5"),
        ("name", "name"),
        (7, "a/b/7"),
        ("b/7", None),
        (1, None),
        (True, None),
        (2.5, None),
        (float("nan"), None),
        (None, None),
        (["Mbpp/2"], None),
        ("", None),
        ("Mbpp/", None),
    ],
)
def test_the_task_that_an_id_names(given: Any, found: str | None) -> None:
    assert IdFinder(IDS).find(given) == found
