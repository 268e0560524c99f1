"""Each attack on each of its kinds of tests: it does not pass, harms nothing, and leaves later verdicts right."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from ra3gym import verify
from ra3gym.tasks import CodeTask, StdioTests
from ra3gym.verify import Judge, Limits, Status
from tests.verify.attacks import (
    floods,
    forging,
    hanging,
    kernel,
    leaving,
    patching,
    processes,
    raising,
    searching,
    secrets,
    values,
)
from tests.verify.attacks.attack import AS_SCRIPT, EVERY_KIND, RIGHT, Attack

MODULES = (
    values,
    searching,
    patching,
    leaving,
    forging,
    raising,
    processes,
    floods,
    secrets,
    kernel,
    hanging,
)
ATTACKS: dict[str, Attack] = {
    f"{module.__name__.rpartition('.')[2]}.{attack.name}": attack for module in MODULES for attack in module.ATTACKS
}
CASES = [(name, kind) for name, attack in ATTACKS.items() for kind in attack.tasks]

LIMITS = Limits(seconds=1.0, memory_mb=256, output_kb=4, wall_seconds=300.0)
"""On a busy machine the wall clock ends no program that computes: what is not to wait has the statuses of its own."""
IMPATIENT = replace(LIMITS, wall_seconds=5.0)
"""For attacks that may wait: the wall clock ends them."""
_CPU_SECONDS = 3.0
"""CPU time that one attack may cost the trainer; all together take less on the slowest machine."""
_NOBODY = 65534


@dataclass(frozen=True)
class Bystanders:
    """What attacks must not harm: a file, a process that listens, and the judge's own processes."""

    file: Path
    process: subprocess.Popen[bytes]
    port: int

    def marked(self, source: str) -> str:
        """Return the source with the targets of the attack filled in."""
        places = {
            "@CANARY_FILE@": str(self.file),
            "@CANARY_PID@": str(self.process.pid),
            "@CANARY_PORT@": str(self.port),
            "@JUDGE@": str(Path(verify.__file__)),
            "@TESTS@": str(Path(__file__)),
        }
        for mark, place in places.items():
            source = source.replace(mark, place)
        return source

    def check(self) -> None:
        """Assert that nothing has happened to them."""
        assert self.process.poll() is None
        assert self.file.read_text() == "sing"
        assert [path.name for path in self.file.parent.iterdir()] == [self.file.name]


@pytest.fixture(scope="module")
def bystanders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bystanders]:
    file = tmp_path_factory.mktemp("canary") / "canary"
    file.write_text("sing")
    file.parent.chmod(0o777)
    file.chmod(0o666)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Bystanders(file, process, server.getsockname()[1])
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def judge(bystanders: Bystanders) -> Iterator[Judge]:
    with _warm_judge(LIMITS) as judge:
        yield judge


@pytest.fixture(scope="module")
def impatient(bystanders: Bystanders) -> Iterator[Judge]:
    with _warm_judge(IMPATIENT) as judge:
        yield judge


@contextmanager
def _warm_judge(limits: Limits) -> Iterator[Judge]:
    before = os.environ.get("RA3GYM_CANARY")
    os.environ["RA3GYM_CANARY"] = "tweet"
    with Judge(workers=1, limits=limits, cache_size=0) as judge:
        warm = judge.grade([(task, right(task, 0)) for task in EVERY_KIND.values()])
        assert [verdict.status for verdict in warm] == [Status.PASSED] * len(EVERY_KIND)
        yield judge
    if before is None:
        del os.environ["RA3GYM_CANARY"]


def right(task: CodeTask, number: int) -> str:
    """Return a right program whose text differs for each number."""
    last = "print(right(int(input())))" if isinstance(task.tests, StdioTests) else "f = right"
    return f"{RIGHT}\n\n{last}\nword = 'the neighbor of an attack'  # {number}\n"


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
def test_attack(judge: Judge, impatient: Judge, bystanders: Bystanders, name: str, kind: str) -> None:
    """Grades the attack between two right programs for the plain task of its kind, all on one worker."""
    attack, task = ATTACKS[name], ATTACKS[name].tasks[kind]
    source = bystanders.marked(attack.source)
    if isinstance(task.tests, StdioTests) and "def f(" in source:
        source += AS_SCRIPT
    plain = EVERY_KIND.get(kind, EVERY_KIND["check"])
    running, spent = descendants(), time.process_time()

    chosen = impatient if Status.TIMEOUT in attack.statuses else judge
    before, verdict, after = chosen.grade([(plain, right(plain, 1)), (task, source), (plain, right(plain, 2))])
    assert before.passed, before
    assert after.passed, f"{attack.purpose}: the next program is judged {after}"
    assert verdict.status in attack.statuses, f"{attack.purpose}: {verdict.status}, {verdict.message[:500]!r}"
    assert not all(verdict.tests)
    assert time.process_time() - spent < _CPU_SECONDS, f"{attack.purpose}: the trainer was kept busy"

    assert descendants() == running, f"{attack.purpose}: processes were left, or the judge's own were lost"
    bystanders.check()
    assert verdict.message
    assert len(verdict.message) <= 2000
    verdict.message.encode()
    verdict.stdout.encode()


def test_the_attacks_are_many_and_of_every_kind() -> None:
    by_module = Counter(name.split(".")[0] for name in ATTACKS)
    assert len(by_module) == len(MODULES)
    assert sum(by_module.values()) - by_module["kernel"] >= 60
    assert len(ATTACKS) == sum(len(module.ATTACKS) for module in MODULES), "two attacks of one name"


def test_harm_that_is_done_would_show(judge: Judge) -> None:
    """Programs that contain the answers pass if they did harm, as the other tests rely on."""
    for attack in (processes.ATTACKS[0], secrets.ATTACKS[0]):
        done = re.sub(r"def harm\(\):\n", "def harm():\n    return True\n", attack.source)
        for task in EVERY_KIND.values():
            source = done + AS_SCRIPT if isinstance(task.tests, StdioTests) else done
            assert judge.grade([(task, source)])[0].passed


def _interpreter_for_all() -> str | None:
    """Return a Python of this version that a user without rights can start and that finds the tests' packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path=os.defpath), shutil.which("python3", path=os.defpath)):
        if candidate is None:
            continue
        code = (
            f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}; import psutil, pytest, ra3gym.verify"
        )
        if _as_nobody([candidate, "-c", code]).returncode == 0:
            return candidate
    return None


def _as_nobody(command: list[str]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[3]
    try:
        return subprocess.run(
            command,
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            cwd="/",
            env={"PYTHONPATH": f"{root}:{sysconfig.get_path('purelib')}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    except PermissionError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="is run by root, to become somebody else")
def test_attacks_as_a_user_without_rights(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs the suite as a user without rights, for whom the judge needs a user namespace."""
    python = _interpreter_for_all()
    if python is None:
        pytest.skip("no interpreter that another user could start finds pytest, psutil and this checkout")
    arguments = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    rerun = _as_nobody([python, *arguments, "--rootdir", str(Path(__file__).resolve().parents[3]), __file__])
    assert rerun.returncode == 0, rerun.stdout[-20_000:] + rerun.stderr[-2000:]
