"""Isolating a process: its own namespaces, a small read-only root, no capabilities.

A zygote calls `enter` once, and the programs forked from it inherit the isolation. The new root shows the interpreter's
standard library, the folders of the shared objects that it uses, and /dev/null, zero and urandom.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sysconfig
from collections.abc import Iterable
from typing import NoReturn

from . import linux

NOBODY = 65534
_PRIVATE_UIDS = (61184, 65519)  # the range that systemd uses for dynamic users of services
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_ALSO_SEEN = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_STAGE = "/tmp"
_SHARED_OBJECT = re.compile(r"(/.*)/[^/]+\.so[^/]*$")


def enter(also_seen: Iterable[str] = ()) -> None:
    """Isolate this process. Returns in a child of it that is pid 1; the calling process only waits for the child.

    `also_seen` are further folders to show. Raises `linux.StepFailed` when this machine refuses a step.
    """
    outside = _namespace("mnt"), _namespace("pid")
    paths = needed_paths(also_seen)
    uid = _unshare()
    pid = os.fork()
    if pid != 0:
        _wait_for(pid)
    _build_root(paths)
    # All further steps rely on this check, so that none of them ever changes the machine outside.
    if os.getpid() != 1 or {_namespace("mnt", "/old/proc"), _namespace("pid", "/old/proc")} & {*outside}:
        raise linux.StepFailed("making sure of the new namespaces", errno.EPERM)
    _leave_old_root()
    linux.set_host_name("sandbox")
    linux.drop_bounding_set()
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    linux.drop_capabilities()
    linux.prctl("parent-death signal", linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _namespace(kind: str, proc: str = "/proc") -> str:
    return os.readlink(f"{proc}/self/ns/{kind}")


def _unshare() -> int | None:
    """Enter new namespaces; returns the user id to change to, `None` in a new user namespace, which has only one."""
    if os.geteuid() == 0 and _mapped(_PRIVATE_UIDS[1]):
        try:
            linux.unshare(_NAMESPACES)
        except linux.StepFailed:  # root without the capability, as in a container
            pass
        else:
            low, high = _PRIVATE_UIDS
            return low + os.getpid() % (high - low + 1)
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(_NAMESPACES | linux.CLONE_NEWUSER)
    for name, line in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(line)
    return None


def _mapped(number: int) -> bool:
    """Return whether the present user namespace has this user id and this group id."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="utf-8") as file:
            ranges = [[int(part) for part in line.split()] for line in file]
        if not any(inside <= number < inside + count for inside, _, count in ranges):
            return False
    return True


def _wait_for(pid: int) -> NoReturn:
    _, status = os.waitpid(pid, 0)
    os._exit(min(255, abs(os.waitstatus_to_exitcode(status))))


def needed_paths(also_seen: Iterable[str] = ()) -> dict[str, str]:
    """Return the paths that Python needs and `also_seen`, each with its path without symbolic links."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_ALSO_SEEN, *also_seen}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths |= {match[1] for match in map(_SHARED_OBJECT.search, maps) if match}
    paths = {path for path in paths if os.path.isabs(path) and os.path.exists(path)}
    outermost = [path for path in sorted(paths) if not any(path.startswith(other + "/") for other in paths)]
    return {path: os.path.realpath(path) for path in outermost}


def _build_root(paths: dict[str, str]) -> None:
    """Make /new with `paths` mounted in it, and move the old root to /old."""
    tmpfs = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", _STAGE, "tmpfs", tmpfs, "size=1m,mode=755")
    os.mkdir(_STAGE + "/new")
    os.mkdir(_STAGE + "/old")
    linux.pivot_root(_STAGE, _STAGE + "/old")
    os.chdir("/")
    linux.mount("tmpfs", "/new", "tmpfs", tmpfs, "size=1m,mode=755")
    for name in os.listdir("/old"):
        if os.path.islink(f"/old/{name}"):  # lib -> usr/lib, for example
            os.symlink(os.readlink(f"/old/{name}"), f"/new/{name}")
    for path, real_path in paths.items():
        _mount_point("/new" + path, os.path.isdir("/old" + real_path))
        linux.mount("/old" + real_path, "/new" + path, None, linux.MS_BIND | linux.MS_REC)
    for packages in _package_folders(paths):
        linux.mount("tmpfs", packages, "tmpfs", tmpfs, "size=4k")
    for device in DEVICES:
        _mount_point(f"/new{device}", False)
    linux.set_mount_flags("/new", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
    for device in DEVICES:  # the only files that may be written; they discard what is written
        linux.mount(f"/old{device}", f"/new{device}", None, linux.MS_BIND)


def _package_folders(paths: Iterable[str]) -> list[str]:
    """Return the folders of installed packages in `paths`, or in a folder of a Python version in them."""
    folders = [f"/new{path}" for path in paths if os.path.isdir(f"/new{path}")]
    folders += [f"{folder}/{name}" for folder in folders for name in os.listdir(folder) if name.startswith("python")]
    packages = [f"{folder}/{kind}" for folder in folders for kind in ("site-packages", "dist-packages")]
    return [folder for folder in packages if os.path.isdir(folder)]


def _mount_point(path: str, is_folder: bool) -> None:
    if is_folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))


def _leave_old_root() -> None:
    os.chdir("/new")
    linux.pivot_root(".", ".")
    linux.unmount(".")
    os.chdir("/")
