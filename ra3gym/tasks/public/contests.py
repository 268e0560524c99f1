"""Benchmarks of programming contests: LiveCodeBench and Codeforces.

Most of their problems read stdin and write stdout. Those of LiveCodeBench from LeetCode call a method instead.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import pickle
import zlib
from typing import Any

from ra3gym.errors import DataError
from ra3gym.tasks.public.graders import GRADERS
from ra3gym.tasks.public.prompts import docstring
from ra3gym.tasks.records import Record
from ra3gym.tasks.task import CodeTask, FunctionTests, StdioTests, Tests

_LIVECODEBENCH = GRADERS["livecodebench"]
_LIVECODEBENCH_SECONDS = 6.0  # the default of its grader, for each test
_INTERPRETER_MB = 128  # contests count memory that is used; the judge counts address space, the interpreter included


def livecodebench(record: Record) -> CodeTask:
    """Convert a problem of LiveCodeBench's code generation, with its public and private test cases.

    The prompt is the statement as a docstring, then the starter code if there is any. The entry point of a method
    problem is `Solution.method`. Each test has 6 s.
    """
    cases = _cases(record, "public_test_cases") + _cases(record, "private_test_cases")
    if not cases:
        raise record.wrong("public_test_cases", "no test cases, public or private")
    starter = record.text("starter_code", "")
    prompt = docstring(record.text("question_title", ""), record.text("question_content"), separator="\n\n")
    task_id = f"LiveCodeBench/{record.text('question_id')}"
    if any(case["testtype"] == "functional" for case in cases):
        inputs = tuple(tuple(_json(record, line) for line in case["input"].split("\n")) for case in cases)
        outputs = tuple(_json(record, case["output"]) for case in cases)
        method = _json(record, record.text("metadata")).get("func_name")
        if not isinstance(method, str):
            raise record.wrong("metadata", "names no 'func_name' for the functional test cases")
        entry_point = f"Solution.{method}" if "class Solution" in starter else method
        tests: Tests = FunctionTests(inputs, outputs, equality=_LIVECODEBENCH.values)
    else:
        given, wanted = (tuple(case[name] for case in cases) for name in ("input", "output"))
        entry_point, tests = "", StdioTests(given, wanted, equality=_LIVECODEBENCH.text)
    return CodeTask(
        task_id=task_id,
        prompt=prompt + starter,
        entry_point=entry_point,
        tests=tests,
        preamble=_LIVECODEBENCH.preamble,
        seconds=_LIVECODEBENCH_SECONDS,
    )


def codeforces(record: Record) -> CodeTask | None:
    """Convert a problem of Open-R1's Codeforces; `None` for a problem that comparing stdout cannot grade.

    Such problems are interactive, read files, have several right answers (a checker decides), or have no published
    tests. The tests are the examples, then the official tests. Each has the time and the memory that the problem gives.
    """
    checked = record.text("generated_checker", "") or record.text("interaction_format", "")
    if checked or record.text("input_mode", "stdin") != "stdin":
        return None
    cases = [_example(record, name, case) for name in ("examples", "official_tests") for case in record.items(name, [])]
    cases = list(dict.fromkeys(cases))
    if not cases:
        return None
    sections = [record.text("title", ""), record.text("description")]
    for heading, name in (("Input", "input_format"), ("Output", "output_format"), ("Note", "note")):
        if record.text(name, ""):
            sections.append(f"{heading}\n{record.text(name)}")
    for case in record.items("examples", [])[:3]:
        shown_input, shown_output = _example(record, "examples", case)
        sections.append(f"Example input\n{shown_input}\nExample output\n{shown_output}")
    inputs, outputs = (tuple(case[part] for case in cases) for part in (0, 1))
    memory_mb = _limit(record, "memory_limit")
    return CodeTask(
        task_id=f"Codeforces/{record.text('id')}",
        prompt=docstring(*sections, separator="\n\n"),
        entry_point="",
        tests=StdioTests(inputs, outputs, equality=GRADERS["codeforces"].text),
        seconds=_limit(record, "time_limit"),
        memory_mb=None if memory_mb is None else math.ceil(memory_mb) + _INTERPRETER_MB,
    )


def _limit(record: Record, name: str) -> float | None:
    """Return a limit of a problem, `None` if the record has none."""
    value = record.fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise record.wrong(name, f"must be a positive number, got {value!r}")
    return float(value)


def _cases(record: Record, name: str) -> list[dict[str, str]]:
    text = record.text(name, "[]")
    try:
        cases = json.loads(text)
    except ValueError:
        cases = _unpacked(record, name, text)
    if not isinstance(cases, list):
        raise record.wrong(name, f"must hold a list of test cases, got {type(cases).__name__}")
    for index, case in enumerate(cases):
        known = isinstance(case, dict) and all(isinstance(case.get(key), str) for key in ("input", "output"))
        if not known or case.get("testtype") not in ("stdin", "functional"):
            raise record.wrong(
                name, f"test case {index} needs 'input', 'output' and a 'testtype' of stdin or functional"
            )
    return cases


class _StringOnly(pickle.Unpickler):
    """Reads LiveCodeBench's pickles, which hold a JSON string, and refuses to load any class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a pickle that should hold a string")


def _unpacked(record: Record, name: str, text: str) -> Any:
    """Unpack LiveCodeBench's test cases: JSON in a pickle, compressed by zlib, in base64."""
    try:
        packed = zlib.decompress(base64.b64decode(text, validate=True))
        return json.loads(_StringOnly(io.BytesIO(packed)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
        raise record.wrong(name, f"neither JSON nor packed JSON: {error}") from None


def _json(record: Record, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{record.place}: a test case or the metadata is not JSON: {error}: {text[:80]!r}") from None


def _example(record: Record, name: str, case: Any) -> tuple[str, str]:
    if not isinstance(case, dict) or not all(isinstance(case.get(key), str) for key in ("input", "output")):
        raise record.wrong(name, "every test needs 'input' and 'output' strings")
    return case["input"], case["output"]
