"""One run in an interpreter of its own: as `python -s -P -S -B single.py RUN`, started by `spawner.py`."""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, guard, landlock, linux, namespaces, seccomp, solution, tester
else:
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, _HERE)
    import child
    import guard
    import solution
    import tester

    if sys.platform == "linux":
        import landlock
        import linux
        import namespaces
        import seccomp
    sys.path.remove(_HERE)


def main() -> None:
    """Run what the argument says under the limits that this machine offers, and leave."""
    options = json.loads(sys.argv[1])
    run = options["run"]
    job = child.read_json(options["file"], run["at"])
    if options["role"] == "tester":
        body = functools.partial(tester.run, tester.compiled(job))
    else:
        body = functools.partial(solution.run, job)
    child.settle()
    child.arrange_descriptors(child.Places(*options["places"]))

    def limits() -> None:
        child.give_stdin(job.get("stdin", ""))
        shut_in = sys.platform == "linux" and seccomp.supported(linux.MACHINE)
        child.take_limits(run["seconds"], run["memory_mb"], threads=shut_in)
        if shut_in:
            linux.drop_capabilities()
            if landlock.version() > 0:
                landlock.restrict_to([*namespaces.needed_paths().values(), *namespaces.DEVICES])
            linux.install_filter(seccomp.filter_program(linux.MACHINE, read_only=True))
        else:
            guard.install()

    child.set_up(limits)
    child.run(body)


if __name__ == "__main__":
    main()
