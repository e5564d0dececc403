"""A decode process locks itself up: `enter` before it loads native code, `lock` after, and nothing undoes it.

Several barriers stand before each target, so that one that the system refuses leaves the others. A container's default
profile refuses new namespaces; kernels before 5.13 have no Landlock.

======================  ==============================================================================================
namespaces              no network interfaces, no abstract sockets, no System V memory
empty root folder       no paths of files or sockets, where the process may change its root
another user            no files, signals or memory of the service, where the service runs as root
no capabilities         nor new ones
Landlock                no files; TCP, signals and abstract sockets from newer kernels on
seccomp                 none of the system calls that reach any of these, or that make processes
======================  ==============================================================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from vidlex.service.decode.isolation import landlock, seccomp
from vidlex.service.decode.isolation.syscalls import call, prctl

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522
_KILL, _SETGID, _SETUID, _SYS_CHROOT, _SYS_ADMIN = 5, 6, 7, 18, 21  # capabilities
_UNPRIVILEGED = 65534
_EMPTY_FOLDER = "/proc/self/fdinfo"  # lists the process's own descriptors by number, and can hold nothing else
_FIRST_TO_DIE = "1000"

Missing = list[str]


def enter(service_pid: int, max_threads: int) -> Missing:
    """While the process has one thread, and before it loads native code. The barriers that the system does not give."""
    if sys.platform != "linux":
        return ["Linux"]
    missing: Missing = []
    _end_with(service_pid)
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        file.write(_FIRST_TO_DIE)  # if memory runs out, the kernel ends this process rather than the service
    with _noting("no new privileges", missing):
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    flags = _CLONE_NEWNET | _CLONE_NEWIPC
    is_privileged = _has(_SYS_ADMIN)  # root stays in its user namespace, so that it can become another user
    with _noting("namespaces", missing):
        call("unshare", flags if is_privileged else flags | _CLONE_NEWUSER)
        if not is_privileged:  # within a user namespace of its own, only its own threads count
            resource.setrlimit(resource.RLIMIT_NPROC, (max_threads, max_threads))
    return missing


def lock(service_pid: int) -> Missing:
    """Give up everything that is not open yet, before the process sees the first file."""
    if sys.platform != "linux":
        return []
    missing: Missing = []
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    may_change_user = all(map(_has, (_KILL, _SETGID, _SETUID)))  # the service, which has the same, can still end it
    if _has(_SYS_CHROOT):
        with _noting("an empty root folder", missing):
            os.chroot(_EMPTY_FOLDER)
    else:
        missing.append("an empty root folder (no permission)")
    os.chdir("/")
    if os.getuid() == 0:
        with _noting("another user than root", missing):
            if not may_change_user:
                raise PermissionError("no permission")
            os.setgroups([])
            os.setresgid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
            os.setresuid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
    _end_with(service_pid)  # again: the kernel forgets it when the user changes
    with _noting("giving up capabilities", missing):
        _drop_capabilities()
    with contextlib.suppress(OSError):
        prctl(_PR_SET_DUMPABLE, 0)  # other processes of the user can neither read nor trace it
    with _noting("Landlock", missing):
        missing += landlock.lacks(landlock.give_up_access())
        if num_threads > 1:
            missing.append(f"Landlock for {num_threads - 1} threads of libraries")
    with _noting("seccomp", missing):
        seccomp.install_filter()
    return missing


def protect_service() -> None:
    """Where the kernel has no other barrier, at least keep other processes of the user from the service's memory.

    A debugger of that user is kept out too.
    """
    if sys.platform == "linux" and not _has_any_filter():
        with contextlib.suppress(OSError):
            prctl(_PR_SET_DUMPABLE, 0)


def _has_any_filter() -> bool:
    with contextlib.suppress(OSError):
        return landlock.landlock_version() > 0
    return seccomp.is_available()


def _end_with(service_pid: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != service_pid:  # it has ended before
        raise SystemExit(0)


def _drop_capabilities() -> None:
    with contextlib.suppress(OSError):  # EINVAL: beyond the last one; EPERM: without CAP_SETPCAP
        for capability in range(64):
            prctl(_PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("=II", _CAPABILITY_VERSION, 0))
    call("capset", header, ctypes.create_string_buffer(bytes(24)))


def _has(capability: int) -> bool:
    try:
        with Path("/proc/self/status").open() as file:
            (line,) = (line for line in file if line.startswith("CapEff:"))
    except (OSError, ValueError):
        return False
    return bool(int(line.split()[1], 16) >> capability & 1)


@contextlib.contextmanager
def _noting(what: str, missing: Missing) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        missing.append(f"{what} ({error.strerror or error})")
