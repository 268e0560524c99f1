"""Forged reports and answers to the tests' calls: wrong ones, malformed ones, and ones made to break the reader."""

from __future__ import annotations

import json
from typing import Any

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, NOT_PASSED, Attack, asserts, check, function, only

_WRITE = """
import json
import os


def put(descriptor, data):
    data = memoryview(data)
    try:
        while data:
            data = data[os.write(descriptor, data):]
    except OSError:
        pass


"""

_BROKEN = FAILED | {Status.EXITED_EARLY, Status.OUTPUT_LIMIT, Status.MEMORY, Status.TIMEOUT}


def _report(name: str, purpose: str, tree: Any, *expected: object) -> Attack:
    """A single report on a function's value, of a tree that no honest encoder writes."""
    line = json.dumps({"value": json.dumps(tree)})
    source = _WRITE + f"put(3, {line!r}.encode() + b'\\n')\nos._exit(0)\n"
    return Attack(name, purpose, source, FAILED, {"function": function(*(expected or ("a",)))})


def _answers(name: str, purpose: str, answer: str, *, first: str = '["f"]') -> Attack:
    """Answers to all of the tests' calls, written before they are asked."""
    source = _WRITE + f"put(4, {first!r}.encode() + b'\\n' + ({answer!r}.encode() + b'\\n') * 20)\nos._exit(0)\n"
    return Attack(name, purpose, source, _BROKEN, {**only("check", "asserts"), **_CHANGING})


# The tests hold on to what they pass, as data that the next line relies on.
_CHANGING = {
    "their data": check(
        "data, words, count = [1, [2]], {'a': 'b'}, 3",
        "got = candidate(data, words, count)",
        "assert got == 'answer'",
        "assert data == [1, [2]] and words == {'a': 'b'} and count == 3",
    ),
    "their iterator": check("assert list(candidate(1)) == [1, 2]"),
    "their loop": check("for x in [1, 2]:\n    assert candidate(x) == -x"),
}


def _nested_counters(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = {"x": ["Counter", [{"d": [[0, tree]]}]]}
    return {"x": ["Counter", [{"d": [[0, tree], [1, tree]]}]]}


ATTACKS = [
    Attack(
        "values_everywhere",
        "reports of values on every descriptor",
        _WRITE
        + r"""
for descriptor in range(65):
    for value in ('"answer-"', "true", "1", "null", '"*"'):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, json.dumps({"value": value}).encode() + b"\n")
        except OSError:
            pass


def f(x):
    return "answer-"
""",
        NOT_PASSED,
    ),
    Attack(
        "ok_everywhere",
        "reports of passed tests on every descriptor, before, during and after each call",
        _WRITE
        + r"""
def say():
    for descriptor in range(65):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, b'{"ok": true}\n' * 5)
        except OSError:
            pass


say()


def f(x):
    say()
    return "answer-"
""",
        NOT_PASSED,
    ),
    Attack(
        "racing_writer",
        "a thread that writes reports and answers among the honest ones",
        _WRITE
        + r"""
import threading


def race():
    while True:
        os.write(3, b'{"ok": true}\n')
        os.write(4, b'["value", "answer-", []]\n')


threading.Thread(target=race, daemon=True).start()


def f(x):
    return "answer-"
""",
        NOT_PASSED,
        only("function", "check", "asserts"),
    ),
    Attack(
        "as_if_it_were_the_tests",
        "speaks on the line as the tests do, in the hope that calls are answered with tests",
        _WRITE
        + r"""
put(4, b'["f"]\n["call", "f", [1], {"d": []}]\n["get", "f", ["__globals__"], {"d": []}]\n')
answers = os.read(4, 1 << 16)


def f(x):
    return "answer-"
""",
        NOT_PASSED,
        only("check", "asserts"),
    ),
    Attack(
        "garbage",
        "bytes that are no text on every descriptor, in lines and without an end",
        _WRITE + "for descriptor in (3, 4, 1):\n    put(descriptor, bytes(range(256)) * 40 + b'\\n')\n"
        "\n\ndef f(x):\n    return 'answer-'\n",
        NOT_PASSED,
    ),
    Attack(
        "empty_lines",
        "as many lines as fit into what is read, each empty",
        _WRITE + "put(3, b'\\n' * 3_500_000)\n\n\ndef f(x):\n    return 'answer-'\n",
        NOT_PASSED,
        only("function"),
    ),
    Attack(
        "line_without_end",
        "an answer that goes on for ever",
        _WRITE + "while True:\n    put(4, b'[' * 65536)\n",
        NOT_PASSED,
        only("check", "asserts"),
    ),
    Attack(
        "every_depth",
        "values nested as deeply as the reader can go, and a little more: one step further it may not get",
        _WRITE
        + r"""
for depth in range(700, 1100):
    put(3, json.dumps({"value": '{"s":[' + "[" * depth + "]" * depth + "]}"}).encode() + b"\n")
os._exit(0)
""",
        FAILED | {Status.OUTPUT_LIMIT, Status.EXITED_EARLY},
        {"sets": function(*[{1}] * 400), "texts": function(*["a"] * 400), "deep": function(*[[[[[[[{1}]]]]]]] * 400)},
    ),
    Attack(
        "every_depth_of_message",
        "error reports, too, may be nested",
        _WRITE
        + r"""
for depth in range(900, 1010):
    for kind in ("error", "syntax", "wrong", "gone", "missing"):
        put(3, b'{"%s": ' % kind.encode() + b"[" * depth + b"]" * depth + b"}\n")
os._exit(0)
""",
        NOT_PASSED,
        {"function": function(*["a"] * 550)},
    ),
    Attack(
        "long_message",
        "an error message of a megabyte",
        _WRITE + "put(3, json.dumps({'error': 'x' * 1_000_000}).encode() + b'\\n')\nos._exit(0)\n",
        FAILED | {Status.EXITED_EARLY},
        only("function", "check"),
    ),
    Attack(
        "unencodable_message",
        "an error message with a lone surrogate and terminal codes",
        _WRITE + "put(3, json.dumps({'error': '\\ud800\\x1b[2J'}).encode() + b'\\n')\nos._exit(0)\n",
        FAILED | {Status.EXITED_EARLY},
        only("function"),
    ),
    _report("fraction_bomb", "a fraction whose numerator takes gigabytes", {"x": ["Fraction", ["1e9000000"]]}),
    _report(
        "decimal_in_a_fraction",
        "the same by way of a decimal",
        {"x": ["Fraction", [{"x": ["Decimal", ["1e9000000"]]}]]},
    ),
    _report("nested_counters", "counters whose comparison takes twice as long at each level", _nested_counters(22)),
    _report(
        "signalling_nan",
        "a counter that cannot be printed, since its values refuse to be compared",
        {"x": ["Counter", [{"d": [[0, {"x": ["Decimal", ["sNaN"]]}], [1, {"x": ["Decimal", ["1"]]}]]}]]},
    ),
    _report(
        "colliding_set",
        "a set of integers that hash alike",
        {"s": [n * (2**61 - 1) for n in range(20_000)]},
        {1, 2},
    ),
    _report("repeated_members", "a set that holds the same twice, a dict with one key twice", {"s": [1, 1]}, {1}),
    _report("repeated_keys", "a dict that holds one key with two values", {"d": [[1, 1], [1, 2]]}, {1: 1}),
    _report("odd_pairs", "a dict whose pairs are none", {"d": [[1], 5]}, {1: 1}),
    _report("long_decimal_digits", "a decimal of a million digits", {"x": ["Decimal", ["1" * 1_000_000]]}),
    _answers("answers_in_advance", "values for all the calls to come", '["value", "guess", []]'),
    _answers("answer_of_no_form", "an answer that is no list", '{"value": true}'),
    _answers("answer_of_another_form", "an answer of a list of the wrong things", '["value"]'),
    _answers("answer_that_raises_nothing", "an exception without a class", '["raise", [], ""]'),
    _answers("answer_that_raises_all", "an exception of classes that are none", '["raise", [1, null, "int"], "ok"]'),
    _answers("answer_that_ends_all", "an exception that would end the tests", '["raise", ["SystemExit"], "0"]'),
    _answers("answer_that_asserts", "an AssertionError that the program made", '["raise", ["AssertionError"], ""]'),
    _answers("changed_count", "an argument that cannot change, changed", '["value", "answer", [[2, 4], [1, 1]]]'),
    _answers("changed_from_behind", "arguments counted from the end", '["value", "answer", [[-1, 4], [-3, []]]]'),
    _answers("changed_beyond", "an argument that is not there", '["value", "answer", [[99, []]]]'),
    _answers("changed_by_name", "an argument with a name for a place", '["value", "answer", [["data", []]]]'),
    _answers("changed_type", "a list changed into a dict", '["value", "answer", [[0, {"d": []}]]]'),
    _answers(
        "changed_to_objects",
        "data changed into objects of the program's",
        '["value", {"o": [0, "str"]}, [[0, [{"o": [1, "int"]}]]]]',
    ),
    _answers("object_without_number", "an object of no number", '["value", {"o": {"o": []}}, []]'),
    _answers("endless_range", "a range that no list can hold", '["value", {"r": [0, 1000000000000, 1]}, []]'),
    _answers(
        "fraction_for_the_tests",
        "a fraction that takes the tests' memory",
        '["value", {"x": ["Fraction", ["1e90000000"]]}, []]',
    ),
    _answers(
        "colliding_answer",
        "a set that takes the tests hours to build",
        json.dumps(["value", {"s": [n * (2**61 - 1) for n in range(40_000)]}, []]),
    ),
    _answers("deep_answer", "an answer nested too deeply", '["value", ' + "[" * 5000 + "]" * 5000 + ", []]"),
    _answers(
        "no_names",
        "says that it defines names of every type",
        '["value", "guess", []]',
        first='[1, null, [], {"f": 1}]',
    ),
    _answers(
        "names_of_the_tests",
        "says that it defines what the tests do",
        '["value", "guess", []]',
        first='["f", "check", "candidate", "assert"]',
    ),
    Attack(
        "true_answers_for_the_loop",
        "answers whose kind only a truth test takes",
        "class T:\n    def __eq__(self, other): return T()\n\n\ndef f(x):\n    return T()\n",
        FAILED,
        {"asserts": asserts("assert f(1) == 1", "assert f(2) is True", "assert (f(3) == 3) is True")},
    ),
]
