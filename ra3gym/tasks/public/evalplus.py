"""EvalPlus' tests (HumanEval+ and MBPP+), with the comparison of EvalPlus' own grader instead of the published one.

The published tests are made from a template. For Mbpp/737, 787 and 794 it computes whether the output matches and never
asserts it. It needs numpy, which programs do not have here. And its messages do not say which input failed.
"""

from __future__ import annotations

import inspect
import re

from ra3gym.tasks.public import evalplus_rules
from ra3gym.tasks.public.evalplus_rules import EVALPLUS_ORACLES

_NUMPY_IMPORT = re.compile(r"^import numpy as np$", re.MULTILINE)
_COMPARISON = re.compile(
    r"^(?P<indent> +)assertion\((?P<function>\w+)\(\*inp\), (?P<expected>exp|ref_func\(\*inp\)), "
    r"(?P<atol>[\d.e+-]+)\)$",
    re.MULTILINE,
)
_LOOP = re.compile(r"^for i, (inp|\(inp, exp\)) in enumerate\(.*\):$", re.MULTILINE)
# HumanEval+ tests find_zero (HumanEval/32) with _poly(*candidate(*inp), inp), which no solution passes.
_FIND_ZERO = ("_poly(*candidate(*inp), inp)", "abs(_poly(*inp, candidate(*inp)))")


def with_evalplus_rules(test: str, function: str = "") -> str:
    """Return a test of EvalPlus' template that compares by `evalplus_rules`; any other test as it is.

    `function` is that of an MBPP+ task, which may have an oracle of its own.
    """
    test = test.replace(*_FIND_ZERO)
    oracle = f", {function!r}" if function in EVALPLUS_ORACLES else ""

    def compared(found: re.Match[str]) -> str:
        # The reference gets copies: the program may have changed its arguments, and so may the reference.
        expected = "exp" if found["expected"] == "exp" else "ref_func(*deepcopy(inp))"
        return f"{found['indent']}evalplus_check({found['function']}, inp, {expected}, {found['atol']}{oracle})"

    examined, number = _COMPARISON.subn(compared, test)
    if not number:
        return test
    rules = inspect.getsource(evalplus_rules)
    return f"{rules}\n\nfrom copy import deepcopy\n{_NUMPY_IMPORT.sub('', examined)}"


def split_at_loop(test: str) -> tuple[str, str]:
    """Cut a test of MBPP+ into its definitions and the loop over its inputs, the one statement that fails."""
    loop = _LOOP.search(test)
    return (test, "") if loop is None else (test[: loop.start()], test[loop.start() :])
