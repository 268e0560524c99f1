"""How EvalPlus' own grader compares an output with the expected one.

The text of this file is the beginning of EvalPlus' tests, so it uses the standard library alone. The rules are those of
EvalPlus 0.3.1, modules evalplus.eval and evalplus.eval._special_oracle. One is left out: EvalPlus refuses an `int`
within the tolerance of an expected `float` (as in Mbpp/287, whose reference rounds numbers above 2 ** 53).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any

_EVALPLUS_RTOL = 1e-7
_EVALPLUS_FLOAT_ATOL = 1e-6
"""The absolute tolerance where the task names none and floats are expected."""
_EVALPLUS_SHOWN = 120


def evalplus_check(function: Any, inputs: Any, expected: Any, atol: float, oracle: str = "") -> None:
    """Call `function(*inputs)`; `AssertionError` with the inputs when its output is not the expected one.

    Args:
        function: the program's.
        inputs: its arguments.
        expected: its output.
        atol: the absolute tolerance of the task.
        oracle: the name in `EVALPLUS_ORACLES` of a task with several readings.
    """
    arguments = ", ".join(map(evalplus_shown, inputs))  # the program may change them
    output = function(*inputs)
    if not evalplus_same(output, expected, atol, inputs, oracle):
        raise AssertionError(
            f"expected {evalplus_shown(expected)}, got {evalplus_shown(output)} for ({arguments[:_EVALPLUS_SHOWN]})"
        )


def evalplus_same(output: Any, expected: Any, atol: float, inputs: Any = (), oracle: str = "") -> bool:
    """Return whether an output counts as the expected one."""
    try:
        exact = EVALPLUS_ORACLES[oracle](inputs, output, expected, atol) if oracle else bool(output == expected)
    except Exception:  # the output cannot be read as the oracle needs it
        return False
    if atol == 0 and _evalplus_floats(expected):
        atol = _EVALPLUS_FLOAT_ATOL
    return exact or (atol != 0 and _evalplus_close(output, expected, atol))


def evalplus_shown(value: Any) -> str:
    """Return the beginning of a value's `repr`, without making the whole of it."""
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = short.maxdeque = 20
    short.maxstring = short.maxlong = short.maxother = _EVALPLUS_SHOWN
    text = short.repr(value)
    return text if len(text) <= _EVALPLUS_SHOWN else f"{text[: _EVALPLUS_SHOWN - 3]}..."


def _evalplus_floats(expected: Any) -> bool:
    if isinstance(expected, (list, tuple)) and expected:
        return all(isinstance(item, float) for item in expected)
    return isinstance(expected, float)


def _evalplus_close(output: Any, expected: Any, atol: float) -> bool:
    """Return whether numbers, or lists or tuples of them, are equal within the tolerance."""
    if isinstance(expected, (list, tuple)):
        return (
            type(output) is type(expected)
            and len(output) == len(expected)
            and all(_evalplus_close(a, b, atol) for a, b in zip(output, expected, strict=True))
        )
    if not isinstance(output, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return False
    try:
        return output == expected or abs(output - expected) <= atol + _EVALPLUS_RTOL * abs(expected)
    except OverflowError:  # an int that no float can hold
        return False


def _evalplus_equal_sets(inputs: Any, output: Any, expected: Any, atol: float) -> bool:
    """Compare what is in two lists, as the tasks name no order."""
    return set(output) == set(expected)


def _evalplus_found(inputs: Any, output: Any, expected: Any, atol: float) -> bool:
    """Compare whether a pattern was found: a match object cannot be stored as an expected output."""
    found = output if isinstance(output, bool) else output is not None
    return bool(found == expected)


def _evalplus_height(inputs: Any, output: Any, expected: Any, atol: float) -> bool:
    """Accept the surface of a pyramid whose second number is its height, not the slant of its sides."""
    edge, height = inputs
    slant = math.sqrt((edge / 2) ** 2 + height**2)
    return bool(output == expected or abs(output - round(edge**2 + 2 * edge * slant)) <= atol)


def _evalplus_padded_digits(inputs: Any, output: Any, expected: Any, atol: float) -> bool:
    """Accept the sum of differences of digits between numbers that zeros bring to one length."""
    first, second = map(str, inputs)
    width = max(len(first), len(second))
    digits = zip(first.zfill(width), second.zfill(width), strict=True)
    return bool(output == expected or output == sum(abs(int(a) - int(b)) for a, b in digits))


EVALPLUS_ORACLES: dict[str, Callable[[Any, Any, Any, float], bool]] = {
    # MBPP_OUTPUT_NOT_NONE_TASKS of `_special_oracle.py`
    "check_str": _evalplus_found,
    "text_match_three": _evalplus_found,
    "text_starta_endb": _evalplus_found,
    # MBPP_OUTPUT_SET_EQ_TASKS of `_special_oracle.py`
    "similar_elements": _evalplus_equal_sets,
    "find_char_long": _evalplus_equal_sets,
    "common_in_nested_lists": _evalplus_equal_sets,
    "extract_singly": _evalplus_equal_sets,
    "larg_nnum": _evalplus_equal_sets,
    "intersection_array": _evalplus_equal_sets,
    "find_dissimilar": _evalplus_equal_sets,
    "Diff": _evalplus_equal_sets,
    # `unsafe_execute` in `__init__.py`. Its other two, for Mbpp/164 and 295, accept a constant; MBPP+ has dropped them.
    "surface_Area": _evalplus_height,
    "digit_distance_nums": _evalplus_padded_digits,
}
"""Tasks of MBPP+ by their functions: what counts as the expected output."""
