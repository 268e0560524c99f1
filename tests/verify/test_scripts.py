"""Whole programs (stdin tests) end and start as under a plain interpreter: the same programs print the same there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ra3gym.tasks import CodeTask, StdioTests
from ra3gym.verify import Isolation, Judge, Limits, Status

SUM = CodeTask("test/sum", "", "", StdioTests(("1 2\n", "3 4\n"), ("3\n", "7\n")))
ADD = "a, b = map(int, input().split())\n"

ENDS = {
    "a thread that nobody joins": """
import threading
def main():
    total = sum(range(300000))
    a, b = map(int, input().split())
    print(a + b)
threading.Thread(target=main).start()
""",
    "an executor that is not shut down": f"""
from concurrent.futures import ThreadPoolExecutor
{ADD}ThreadPoolExecutor().submit(lambda: print(a + b))
""",
    "a function for the exit": f"import atexit\n{ADD}atexit.register(lambda: print(a + b))\n",
    "a buffer that is written at the exit": f"""
import atexit, io, os, sys
buffer = io.BytesIO()
sys.stdout.write = lambda text: buffer.write(text.encode())
atexit.register(lambda: os.write(1, buffer.getvalue()))
{ADD}print(a + b)
""",
    "a file left open": f"out = open(1, 'w')\n{ADD}print(a + b, file=out)\n",
    "a file left open that a function uses": f"""
out = open(1, 'w')
def write(text):
    out.write(text)
{ADD}write(str(a + b))
""",
    "a file left open by a class": f"""
class Writer:
    out = open(1, 'w')
    def write(self, text):
        Writer.out.write(text)
{ADD}Writer().write(str(a + b))
""",
    "a file that a function keeps": f"""
def write(text, out=open(1, 'w', closefd=False)):
    out.write(text)
{ADD}write(str(a + b))
""",
    "an object that prints when it is deleted": f"""
class Last:
    def __del__(self):
        print(a + b)
last = Last()
{ADD}
""",
    "a stdout of its own": f"""
import io, sys
sys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))
{ADD}print(a + b)
""",
    "os._exit": f"import os, sys\n{ADD}print(a + b)\nsys.stdout.flush()\nos._exit(0)\n",
    "a closed stdout": f"import sys\n{ADD}print(a + b)\nsys.stdout.close()\n",
    "a closed descriptor": f"import os, sys\n{ADD}print(a + b, flush=True)\nos.close(1)\n",
    "sys.exit": f"import sys\n{ADD}print(a + b)\nsys.exit()\n",
    "sys.exit in a thread": f"""
import sys, threading
{ADD}print(a + b)
threading.Thread(target=sys.exit, args=(3,)).start()
""",
}
WORLDS = {
    "asyncio": """
import asyncio
async def add(a, b):
    await asyncio.sleep(0)
    return await asyncio.to_thread(lambda: a + b)
async def main():
    (total,) = await asyncio.gather(add(*map(int, input().split())))
    print(total)
asyncio.run(main())
""",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin').read().split())))\n",
    "/dev/stdin by pathlib": "import pathlib\nprint(sum(map(int, pathlib.Path('/dev/stdin').read_text().split())))\n",
    "/dev/fd/0": "with open('/dev/fd/0', 'rb') as file:\n    print(sum(map(int, file.read().split())))\n",
    "/dev/stdin by fileinput": """
import fileinput
print(sum(int(n) for line in fileinput.input('/dev/stdin') for n in line.split()))
""",
    "/dev/stdout": f"{ADD}print(a + b, file=open('/dev/stdout', 'w'))\n",
    "a byte order mark": f"\ufeff{ADD}print(a + b)\n",
}
FAILURES = {
    "an exit code": (f"import sys\n{ADD}print(a + b)\nsys.exit(1)\n", Status.EXITED_EARLY),
    "an exit code by os._exit": (f"import os\n{ADD}print(a + b, flush=True)\nos._exit(3)\n", Status.EXITED_EARLY),
    "an error after the answer": (f"{ADD}print(a + b)\n1 / 0\n", Status.EXCEPTION),
    "a signal after the answer": (f"import os\n{ADD}print(a + b, flush=True)\nos.abort()\n", Status.CRASH),
    "nothing printed": ("import os\nos._exit(0)\n", Status.WRONG_ANSWER),
    "the answer left in the buffer": (f"import os\n{ADD}print(a + b)\nos._exit(0)\n", Status.WRONG_ANSWER),
    "a thread that never ends": (
        f"import threading\n{ADD}print(a + b, flush=True)\nthreading.Thread(target=threading.Event().wait).start()\n",
        Status.TIMEOUT,
    ),
    "an exit function that never ends": (
        f"import atexit\n@atexit.register\ndef f():\n    while True: pass\n{ADD}print(a + b, flush=True)\n",
        Status.TIMEOUT,
    ),
}


@pytest.fixture(scope="module", params=["namespaces", "process-as-root" if os.geteuid() == 0 else "process"])
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    if request.param == "namespaces" and "process" in os.environ.get("RA3GYM_ISOLATION", ""):
        pytest.skip("RA3GYM_ISOLATION asks for plain processes")
    isolation: Isolation = request.param
    with Judge(workers=1, limits=Limits(seconds=2.0, memory_mb=512, wall_seconds=5.0), isolation=isolation) as judge:
        yield judge


@pytest.mark.parametrize("source", [*ENDS.values(), *WORLDS.values()], ids=[*ENDS, *WORLDS])
def test_what_prints_the_answer_passes(judge: Judge, source: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(source, encoding="utf-8")
    plain = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, input="1 2\n", capture_output=True, text=True)
    assert (plain.returncode, plain.stdout.split()) == (0, ["3"]), plain.stderr
    (verdict,) = judge.grade([(SUM, source)])
    assert verdict.passed, verdict


@pytest.mark.parametrize(("source", "status"), FAILURES.values(), ids=FAILURES)
def test_what_ends_badly_fails(judge: Judge, source: str, status: Status) -> None:
    (verdict,) = judge.grade([(SUM, source)])
    assert verdict.status is status, verdict
    assert verdict.tests == (False, False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs seccomp")
@pytest.mark.parametrize(
    "use",
    [
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
        "socket.socketpair()[0].send(b'x', socket.MSG_OOB)",
        "socket.socketpair()[0].recv(1, socket.MSG_OOB)",
        "socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
        "socket.socket()",
        "socket.create_connection(('127.0.0.1', 1))",
    ],
)
def test_sockets_are_for_event_loops_alone(judge: Judge, use: str) -> None:
    source = f"import socket\ntry:\n    {use}\nexcept PermissionError:\n    print('refused')\n"
    task = CodeTask("test/socket", "", "", StdioTests(("",), ("refused",)))
    (verdict,) = judge.grade([(task, source)])
    assert verdict.passed, verdict
