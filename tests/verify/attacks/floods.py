"""Too much of everything: memory, disk, output, descriptors, threads."""

from __future__ import annotations

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, NOT_PASSED, harm, only

_ONE = only("function")
_TOO_MUCH = FAILED | {Status.OUTPUT_LIMIT}  # a test may see it fail at writing before it is ended
_OUT_OF_MEMORY = FAILED | {Status.MEMORY, Status.CRASH, Status.TIMEOUT}

ATTACKS = [
    harm(
        "memory_at_once",
        "four times the limit in one piece",
        "def harm():\n    return len(bytearray(1 << 30))\n",
        _OUT_OF_MEMORY,
    ),
    harm(
        "memory_in_pieces",
        "four times the limit, a little at a time",
        "def harm():\n    kept = [bytearray(1 << 20) for _ in range(1024)]\n    return len(kept) == 1024\n",
        _OUT_OF_MEMORY,
    ),
    harm(
        "memory_by_mmap",
        "mappings, private and shared",
        """
import mmap


def harm():
    kept = []
    for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        for _ in range(16):
            kept.append(mmap.mmap(-1, 64 << 20, flags | mmap.MAP_ANONYMOUS))
            kept[-1][:: 4096] = b"x" * (16 << 10)
    return kept
""",
        _OUT_OF_MEMORY,
    ),
    harm(
        "memory_of_stacks",
        "as many threads with as large a stack as there may be",
        """
import threading


def harm():
    threading.stack_size(64 << 20)
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(16)]
    try:
        for thread in threads:
            thread.start()
    finally:
        stop.set()
    return True
""",
        _OUT_OF_MEMORY,
    ),
    harm(
        "memory_files",
        "files that live in memory: memfd, /dev/shm, System V segments",
        """
def harm():
    descriptor = syscall(319, 279, ctypes.c_char_p(b"m"), 0)
    segment = syscall(29, 194, 0, 1 << 30, 0o1600)
    try:
        open("/dev/shm/flood", "wb")
        return True
    except OSError:
        return descriptor >= 0 or segment >= 0
""",
        FAILED,
    ),
    harm(
        "memory_of_the_kernel",
        "pipes made as large as they get, all full",
        """
import fcntl


def harm():
    held = 0
    for _ in range(100):
        read, write = os.pipe()
        os.set_blocking(write, False)
        try:
            fcntl.fcntl(write, 1031, 1 << 20)
        except OSError:
            pass
        try:
            while True:
                held += os.write(write, b"x" * 65536)
        except BlockingIOError:
            pass
    return True
""",
        FAILED,
        _ONE,
    ),
    harm(
        "disk",
        "opens a file for writing in every folder it can see",
        """
def harm():
    made = []
    for folder, _, files in os.walk("/"):
        for path in [f"{folder}/flood", *(f"{folder}/{name}" for name in files[:2])]:
            if path.startswith("/dev/"):
                continue
            try:
                made.append(os.open(path, os.O_WRONLY | os.O_CREAT))
            except OSError:
                pass
        if len(made) > 9:
            break
    for path in ("@CANARY_FILE@", "/tmp/flood", "/var/tmp/flood", "/dev/shm/flood", "flood"):
        try:
            made.append(open(path, "ab"))
        except OSError:
            pass
    return made
""",
        FAILED | {Status.TIMEOUT},
    ),
    harm(
        "file_system",
        "deletes, renames, truncates, links and re-owns what it can name",
        """
def harm():
    done = 0
    targets = ["@CANARY_FILE@", os.__file__, "/dev/null", "/etc/ld.so.cache"]
    for path in targets:
        for attempt in (
            lambda: os.truncate(path, 0),
            lambda: os.rename(path, path + ".gone"),
            lambda: os.link(path, "/link"),
            lambda: os.symlink(path, "/link"),
            lambda: os.chmod(path, 0o777),
            lambda: os.chown(path, os.getuid(), -1),
            lambda: os.utime(path, (0, 0)),
            lambda: os.mkdir(path + ".d"),
            lambda: os.mknod(path + ".p"),
            lambda: os.mkfifo(path + ".f"),
            lambda: os.setxattr(path, "user.a", b"b"),
            lambda: os.unlink(path),
        ):
            try:
                attempt()
                done += 1
            except OSError:
                pass
    return done
""",
        FAILED,
    ),
    harm(
        "stdout",
        "prints a hundred megabytes",
        "def harm():\n    for _ in range(100):\n        print('x' * (1 << 20), flush=True)\n    return True\n",
        _TOO_MUCH,
    ),
    harm(
        "reports",
        "writes as much where reports go",
        "def harm():\n    for _ in range(1600):\n        os.write(3, b'x' * 65536)\n    return True\n",
        _TOO_MUCH,
    ),
    harm(
        "answers",
        "writes as much where the tests listen",
        "def harm():\n    for _ in range(16000):\n        os.write(4, b'x' * 65536)\n    return True\n",
        NOT_PASSED,
        only("check", "asserts"),
    ),
    harm(
        "descriptors",
        "more open files than it may have",
        "def harm():\n    return [os.open('/dev/null', os.O_RDONLY) for _ in range(100)]\n",
        FAILED,
    ),
    harm(
        "threads",
        "more threads than it may have, with stacks small enough for thousands",
        """
import threading


def harm():
    threading.stack_size(1 << 15)
    stop = threading.Event()
    started = 0
    try:
        while started < 1000:
            threading.Thread(target=stop.wait, daemon=True).start()
            started += 1
    finally:
        stop.set()
    return started == 1000
""",
        FAILED | {Status.MEMORY, Status.CRASH},
    ),
]
