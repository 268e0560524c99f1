"""Shutting a process in: namespaces of its own, a small read-only root, no capabilities.

`enter` does it once for a zygote; every program is forked from there and finds it done. What it leaves in sight is the
interpreter's standard library, the folders of the shared objects it runs on, and /dev/null, zero and urandom.
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
_PRIVATE_UIDS = (61184, 65519)  # what systemd sets aside for users that exist as long as a service runs
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_ALSO_SEEN = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_STAGE = "/tmp"
_SHARED_OBJECT = re.compile(r"(/.*)/[^/]+\.so[^/]*$")


def enter(also_seen: Iterable[str] = ()) -> None:
    """Shut this process in; returns in a child of it that is pid 1 there. The process that called only waits for it.

    `also_seen` are more folders to leave in sight. Raises `linux.StepFailed` where this machine refuses a step.
    """
    outside = _namespace("mnt"), _namespace("pid")
    paths = needed_paths(also_seen)
    uid = _unshare()
    pid = os.fork()
    if pid != 0:
        _wait_for(pid)
    _build_root(paths)
    # All that follows relies on this. Nothing here ever deletes a file; still, not one step outside.
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
    """Enter new namespaces; the user id to change to later, `None` where a user namespace of our own has but one."""
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
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    return None


def _mapped(number: int) -> bool:
    """Whether the present user namespace has this user and this group."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            ranges = [[int(part) for part in line.split()] for line in file]
        if not any(inside <= number < inside + count for inside, _, count in ranges):
            return False
    return True


def _wait_for(pid: int) -> NoReturn:
    _, status = os.waitpid(pid, 0)
    os._exit(min(255, abs(os.waitstatus_to_exitcode(status))))


def needed_paths(also_seen: Iterable[str] = ()) -> dict[str, str]:
    """What Python itself needs, and `also_seen`: each path, and the place without symbolic links where it is."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_ALSO_SEEN, *also_seen}
    with open("/proc/self/maps") as maps:
        paths |= {found.group(1) for found in map(_SHARED_OBJECT.search, maps) if found}
    paths = {path for path in paths if os.path.isabs(path) and os.path.exists(path)}
    # A folder within another comes along with it.
    return {
        path: os.path.realpath(path)
        for path in sorted(paths)
        if not any(path.startswith(other + "/") for other in paths)
    }


def _build_root(paths: dict[str, str]) -> None:
    """Make /new, with `paths` bound into it, and move the old root to /old."""
    tmpfs = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", _STAGE, "tmpfs", tmpfs, "size=1m,mode=755")
    os.mkdir(_STAGE + "/new")
    os.mkdir(_STAGE + "/old")
    linux.pivot_root(_STAGE, _STAGE + "/old")
    os.chdir("/")
    linux.mount("tmpfs", "/new", "tmpfs", tmpfs, "size=1m,mode=755")
    for name in os.listdir("/old"):
        if os.path.islink(f"/old/{name}"):  # such as lib -> usr/lib
            os.symlink(os.readlink(f"/old/{name}"), f"/new/{name}")
    for path, place in paths.items():
        _mount_point("/new" + path, os.path.isdir("/old" + place))
        linux.mount("/old" + place, "/new" + path, None, linux.MS_BIND | linux.MS_REC)
    for packages in _package_folders(paths):
        linux.mount("tmpfs", packages, "tmpfs", tmpfs, "size=4k")
    for device in DEVICES:
        _mount_point(f"/new{device}", False)
    linux.set_mount_flags("/new", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
    for device in DEVICES:  # the one kind of file that may be written, and what is written is gone
        linux.mount(f"/old{device}", f"/new{device}", None, linux.MS_BIND)


def _package_folders(paths: Iterable[str]) -> list[str]:
    """Where installed packages lie within `paths`, or in a folder of one version of Python in them."""
    folders = [f"/new{path}" for path in paths if os.path.isdir(f"/new{path}")]
    folders += [f"{folder}/{name}" for folder in folders for name in os.listdir(folder) if name.startswith("python")]
    found = [f"{folder}/{kind}" for folder in folders for kind in ("site-packages", "dist-packages")]
    return [folder for folder in found if os.path.isdir(folder)]


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
