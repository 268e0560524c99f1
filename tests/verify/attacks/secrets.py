"""Reading what a program has no business with, and reaching the network."""

from __future__ import annotations

from tests.verify.attacks.attack import FAILED, harm, only

_ONE = only("function")

ATTACKS = [
    harm(
        "environment",
        "the variables that the trainer was started with",
        """
def harm():
    environ = ctypes.c_void_p.in_dll(_libc, "environ").value
    strings = ctypes.cast(environ, ctypes.POINTER(ctypes.c_char_p))
    raw = []
    while strings[len(raw)]:
        raw.append(strings[len(raw)])
    text = repr(raw) + repr(dict(os.environ)) + repr(os.getenv("RA3GYM_CANARY"))
    return "tweet" in text or "HOME" in text or "PATH=" in text
""",
        FAILED,
    ),
    harm(
        "files_of_the_system",
        "accounts, host, mounts, devices, logs",
        """
def harm():
    paths = "/etc/passwd /etc/shadow /etc/hostname /etc/hosts /etc/resolv.conf /etc/ssl /var/log /var/lib /sys /run"
    paths += " /dev/mem /dev/kmsg /dev/tty /dev/sda /dev/vda /dev/kvm /dev/fuse /dev/fd /dev/shm /dev/ptmx /boot"
    return [path for path in paths.split() if os.path.exists(path)]
""",
        FAILED,
    ),
    harm(
        "files_of_processes",
        "/proc, of oneself, of the zygote and of the trainer",
        """
def harm():
    for path in ("/proc", "/proc/self/maps", "/proc/1/environ", "/proc/1/root", "/proc/@CANARY_PID@/environ"):
        if os.path.exists(path):
            return True
""",
        FAILED,
    ),
    harm(
        "homes",
        "files in home folders, where keys lie",
        """
def harm():
    read = []
    for home in ("/root", "/home", "/mnt", "/media", "/srv", "/opt", "/work", "/workspace", "/data"):
        for folder, _, files in os.walk(home):
            if "/lib/" in folder + "/" or folder.endswith("/lib"):
                continue
            read += files
    return read
""",
        FAILED,
    ),
    harm(
        "files_of_the_trainer",
        "the file that its user keeps, and the sources of the judge and of the tests",
        """
def harm():
    for path in ("@CANARY_FILE@", "@JUDGE@", "@TESTS@"):
        if os.path.exists(path) or os.path.exists(os.path.dirname(path)):
            return True
""",
        FAILED,
    ),
    harm(
        "working_folder",
        "what lies where it runs, and above",
        """
def harm():
    names = set(os.listdir(".")) | set(os.listdir("/")) | set(os.listdir(".." + "/.." * 30))
    return os.getcwd() != "/" or names & {"old", "proc", "sys", "tmp", "run", "new", ".git", "pyproject.toml"}
""",
        FAILED,
    ),
    harm(
        "out_of_the_root",
        "up and out of the root by open directories and chroot",
        """
def harm():
    for descriptor in [os.open("/", os.O_RDONLY | os.O_DIRECTORY), *range(5, 128)]:
        for path in (".." + "/.." * 30 + "/proc/self", ".." + "/.." * 30 + "/@CANARY_FILE@", "@CANARY_FILE@"):
            try:
                os.stat(path, dir_fd=descriptor)
                return True
            except (OSError, ValueError):
                pass
    for attempt in (lambda: os.chroot("."), lambda: os.chdir("/usr"), lambda: os.fchdir(0)):
        try:
            attempt()
            return True
        except OSError:
            pass
""",
        FAILED,
    ),
    harm(
        "handles",
        "files by number instead of by name, past every mount",
        """
def harm():
    handle = ctypes.create_string_buffer(144)
    return (
        syscall(304, 265, -100, handle, 0) >= 0
        or syscall(303, 264, -100, ctypes.c_char_p(b"/"), handle, ctypes.byref(ctypes.c_int()), 0) >= 0
        or syscall(428, 428, -100, ctypes.c_char_p(b"/"), 0) >= 0
        or syscall(437, 437, -100, ctypes.c_char_p(b"/"), handle, 24) >= 0
    )
""",
        FAILED,
        _ONE,
    ),
    harm(
        "installed_packages",
        "packages of the trainer, their data and their credentials",
        """
def harm():
    import importlib.util
    return [name for name in ("ra3gym", "torch", "numpy", "pip", "pytest") if importlib.util.find_spec(name)]
""",
        FAILED,
    ),
    harm(
        "who_it_is",
        "root, in a group of root's, or with a capability",
        """
def harm():
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    asked = syscall(125, 90, header, data)
    return 0 in os.getresuid() or (asked >= 0 and any(data)) or os.uname().nodename != "sandbox"
""",
        FAILED,
    ),
    harm(
        "become_root",
        "another user, other groups, capabilities, a new user namespace",
        """
def harm():
    done = 0
    for attempt in (
        lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0),
        lambda: os.setreuid(0, 0), lambda: os.setregid(0, 0), lambda: os.initgroups("root", 0),
    ):
        try:
            attempt()
            done += 1
        except OSError:
            pass
    everything = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    return done or syscall(126, 91, header, everything) >= 0 or syscall(272, 97, 0x10000000) >= 0
""",
        FAILED,
    ),
    harm(
        "sockets",
        "sockets of every family and kind, and pairs other than the streams of an event loop",
        """
def harm():
    import socket
    made = 0
    for family in range(46):
        for kind in (1, 2, 3, 5):
            try:
                socket.socket(family, kind)
                made += 1
            except OSError:
                pass
    for kind in (2, 3, 5):
        try:
            socket.socketpair(socket.AF_UNIX, kind)
            made += 1
        except OSError:
            pass
    for use in (
        lambda pair: pair[0].send(b"x", socket.MSG_OOB),
        lambda pair: pair[1].recv(1, socket.MSG_PEEK),
        lambda pair: pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1),
        lambda pair: socket.send_fds(pair[0], [b"x"], [0]),
        lambda pair: socket.recv_fds(pair[1], 1, 1),
        lambda pair: pair[0].bind("\\0name"),
        lambda pair: pair[0].connect("\\0name"),
        lambda pair: pair[0].listen(),
    ):
        try:
            use(socket.socketpair())
            made += 1
        except OSError:
            pass
    return made
""",
        FAILED,
    ),
    harm(
        "listening",
        "a server, and a call to one outside",
        """
def harm():
    import socket
    import urllib.request
    for attempt in (
        lambda: socket.create_server(("", 0)),
        lambda: socket.create_connection(("127.0.0.1", @CANARY_PORT@), 0.2),
        lambda: urllib.request.urlopen("http://127.0.0.1:@CANARY_PORT@", timeout=0.2),
        lambda: socket.getaddrinfo("localhost", 80) and socket.gethostbyname("example.org"),
    ):
        try:
            attempt()
            return True
        except OSError:
            pass
""",
        FAILED,
    ),
    harm(
        "socket_of_the_tests",
        "sends descriptors over the line, and makes it more than a line",
        """
def harm():
    import array
    import fcntl
    import socket
    for number in (3, 4):
        try:
            line = socket.socket(fileno=os.dup(number))
            line.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
            return True
        except OSError:
            pass
        try:
            fcntl.ioctl(number, 0x541B, b"0000")
            return True
        except OSError:
            pass
""",
        FAILED,
    ),
]
