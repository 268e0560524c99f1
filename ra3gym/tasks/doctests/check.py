"""Run programs with their tests, each in a fork; `doctests.tasks` starts this file in a new Python process.

stdin is a JSON list of `[program, setup, [statements]]`, stdout a JSON list of booleans: whether all statements ran
without an error. The programs are functions of installed packages, which the user trusts. What a model writes runs in
`ra3gym.verify` instead.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import types

SECONDS = 2
MEMORY_BYTES = 1 << 30


def main() -> None:
    """Run the cases of stdin and print which of them passed."""
    cases = json.load(sys.stdin)
    print(json.dumps([passes(*case) for case in cases]))


def passes(program: str, setup: str, statements: list[str]) -> bool:
    """Return whether program, setup and every statement run without an error, within the limits."""
    pid = os.fork()
    if pid == 0:
        _run(program, setup, statements)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _run(program: str, setup: str, statements: list[str]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        for text in (program, setup, *statements):
            exec(compile(text, "<doctest>", "exec", dont_inherit=True), module.__dict__)
        code = 0
    finally:  # also after an error, the fork ends here
        os._exit(code)


if __name__ == "__main__":
    main()
