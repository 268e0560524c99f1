"""One run in an interpreter of its own, started by `spawner`."""

from __future__ import annotations

import functools
import json
import sys

from . import child, program, tests
from .isolation import guard

if sys.platform == "linux":
    from .isolation import landlock, linux, namespaces, seccomp


def main(argument: str) -> None:
    """Make the run that the argument describes, under the limits that this machine offers."""
    options = json.loads(argument)
    run = options["run"]
    job = child.read_json(options["file"], run["at"])
    if options["role"] == "tests":
        body = functools.partial(tests.run, tests.compiled(job))
    else:
        body = functools.partial(program.run, job)
    child.settle()
    child.arrange_descriptors(child.Descriptors(*options["descriptors"]))

    def take_limits() -> None:
        child.give_stdin(job.get("stdin", ""))
        filtered = sys.platform == "linux" and seccomp.supported(linux.MACHINE)
        child.take_limits(run["budgets"] * run["seconds"], run["memory_mb"], threads=filtered)
        if filtered:
            linux.drop_capabilities()
            if landlock.version() > 0:
                landlock.restrict_to([*namespaces.needed_paths().values(), *namespaces.DEVICES])
            linux.install_filter(seccomp.filter_program(linux.MACHINE, read_only=True))
        else:
            guard.install()

    child.set_up(take_limits)
    child.run(body)
