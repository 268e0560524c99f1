"""System calls that are no business of a program under test, by number, past the C library.

A call counts as harm when it succeeds, and also when it fails for another reason than that the filter refused it: the
kernel should not so much as look at its arguments.
"""

from __future__ import annotations

from tests.verify.attacks.attack import FAILED, harm, only

# name: number on x86-64, on aarch64, arguments
CALLS: dict[str, tuple[int | None, int | None, str]] = {
    "mount": (165, 40, "ctypes.c_char_p(b'none'), ctypes.c_char_p(b'/'), None, 32, None"),
    "umount2": (166, 39, "ctypes.c_char_p(b'/'), 2"),
    "pivot_root": (155, 41, "ctypes.c_char_p(b'.'), ctypes.c_char_p(b'.')"),
    "chroot": (161, 51, "ctypes.c_char_p(b'/usr')"),
    "move_mount": (429, 429, "-1, None, -1, None, 0"),
    "fsopen": (430, 430, "ctypes.c_char_p(b'tmpfs'), 0"),
    "mount_setattr": (442, 442, "-100, ctypes.c_char_p(b'/'), 0, None, 0"),
    "unshare": (272, 97, "0x10000000"),
    "setns": (308, 268, "0, 0"),
    "bpf": (321, 280, "0, None, 0"),
    "seccomp": (317, 277, "1, 0, None"),
    "prctl_new_privs": (157, 167, "38, 0, 0, 0, 0"),
    "prctl_dumpable": (157, 167, "4, 1, 0, 0, 0"),
    "prctl_death_signal": (157, 167, "1, 0, 0, 0, 0"),
    "prctl_subreaper": (157, 167, "36, 1, 0, 0, 0"),
    "personality": (135, 92, "0x0040000"),
    "io_uring_setup": (425, 425, "8, ctypes.create_string_buffer(120)"),
    "perf_event_open": (298, 241, "ctypes.create_string_buffer(128), 0, -1, -1, 0"),
    "userfaultfd": (323, 282, "1"),
    "keyctl": (250, 219, "0, -3, 1"),
    "add_key": (248, 217, "ctypes.c_char_p(b'user'), ctypes.c_char_p(b'a'), ctypes.c_char_p(b'b'), 1, -3"),
    "request_key": (249, 218, "ctypes.c_char_p(b'user'), ctypes.c_char_p(b'a'), None, -3"),
    "init_module": (175, 105, "None, 0, None"),
    "finit_module": (313, 273, "0, None, 0"),
    "delete_module": (176, 106, "ctypes.c_char_p(b'none'), 0"),
    "kexec_load": (246, 104, "0, 0, None, 0"),
    "reboot": (169, 142, "0xfee1dead, 672274793, 0, None"),
    "swapon": (167, 224, "ctypes.c_char_p(b'/dev/null'), 0"),
    "acct": (163, 89, "None"),
    "quotactl": (179, 60, "0, None, 0, None"),
    "syslog": (103, 116, "10, None, 0"),
    "sethostname": (170, 161, "ctypes.c_char_p(b'mine'), 4"),
    "settimeofday": (164, 170, "None, None"),
    "clock_settime": (227, 112, "0, None"),
    "adjtimex": (159, 171, "ctypes.create_string_buffer(208)"),
    "iopl": (172, None, "3"),
    "ioperm": (173, None, "0, 1, 1"),
    "modify_ldt": (154, None, "0, None, 0"),
    "kcmp": (312, 272, "1, 1, 0, 0, 0"),
    "pidfd_open": (434, 434, "1, 0"),
    "process_madvise": (440, 440, "0, None, 0, 4, 0"),
    "process_vm_readv": (310, 270, "1, None, 0, None, 0, 0"),
    "sched_setscheduler": (144, 119, "0, 0, ctypes.byref(ctypes.c_int(0))"),
    "sched_setaffinity": (203, 122, "0, 8, ctypes.byref(ctypes.c_long(1))"),
    "ioprio_set": (251, 30, "1, 0, 0"),
    "mlockall": (151, 230, "1"),
    "memfd_create": (319, 279, "ctypes.c_char_p(b'a'), 0"),
    "memfd_secret": (447, 447, "0"),
    "shmget": (29, 194, "0, 4096, 0o1600"),
    "msgget": (68, 186, "0, 0o1600"),
    "semget": (64, 190, "0, 1, 0o1600"),
    "mq_open": (240, 180, "ctypes.c_char_p(b'q'), 0o102, 0o600, None"),
    "inotify_init1": (294, 26, "0"),
    "fanotify_init": (300, 262, "0, 0"),
    "timer_create": (222, 107, "0, None, ctypes.byref(ctypes.c_int())"),
    "signalfd4": (289, 74, "-1, ctypes.byref(ctypes.c_long(0)), 8, 0"),
    "socket": (41, 198, "2, 1, 0"),
    "socketpair": (53, 199, "1, 2, 0, (ctypes.c_int * 2)()"),
    "sendmsg": (46, 211, "4, ctypes.create_string_buffer(56), 0"),
    "recvmsg": (47, 212, "4, ctypes.create_string_buffer(56), 64"),
    "ioctl": (16, 29, "1, 0x5401, ctypes.create_string_buffer(64)"),
    "execve": (59, 221, "ctypes.c_char_p(b'/none'), None, None"),
    "execveat": (322, 281, "-100, ctypes.c_char_p(b'/none'), None, None, 0"),
    "vmsplice": (278, 75, "1, None, 0, 0"),
    "landlock_create_ruleset": (444, 444, "None, 0, 1"),
    "x32_getpid": (0x40000000 + 39, None, ""),
}

_SOURCE = """
def harm():
    number = (%r, %r)[platform.machine() != "x86_64"]
    if number is None:
        return False
    ctypes.set_errno(0)
    return syscall(%r, %r, %s) >= 0 or ctypes.get_errno() != errno.EPERM
"""

ATTACKS = [
    harm(name, f"calls {name}", _SOURCE % (*numbers, *numbers, arguments), FAILED, only("function"))
    for name, (*numbers, arguments) in CALLS.items()
]
