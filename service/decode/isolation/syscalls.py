"""Numbers of Linux system calls, called and filtered by number since libc wraps few of them for Python."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """``audit``: AUDIT_ARCH_* of linux/audit.h, by which a seccomp filter knows whose numbers it sees."""

    audit: int
    numbers: dict[str, int]


# name: (x86_64, aarch64), from asm/unistd_64.h and asm-generic/unistd.h; None: that architecture has none
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "clone": (56, 220),
    "exit": (60, 93),
    "kill": (62, 129),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "capset": (126, 91),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "prctl": (157, 167),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "tgkill": (234, 131),
    "get_mempolicy": (239, 236),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "unshare": (272, 97),
    "set_robust_list": (273, 99),
    "preadv": (295, 69),
    "prlimit64": (302, 261),
    "getcpu": (309, 168),
    "process_vm_readv": (310, 270),
    "seccomp": (317, 277),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "clone3": (435, 435),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def architecture() -> Architecture | None:
    """Of this process; None where the numbers are not known."""
    machine = platform.machine()
    if machine not in _AUDIT or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    column = list(_AUDIT).index(machine)
    numbers = {name: row[column] for name, row in _NUMBERS.items()}
    return Architecture(_AUDIT[machine], {name: number for name, number in numbers.items() if number is not None})


def call(name: str, *arguments: Any) -> int:
    """The result of the system call. Raises OSError."""
    known = architecture()
    if known is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return check(_LIBC.syscall(*map(_as_word, (known.numbers[name], *arguments))))


def prctl(option: int, *arguments: int) -> int:
    """Raises OSError."""
    words = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return check(_LIBC.prctl(ctypes.c_int(option), *words))


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _as_word(argument: Any) -> Any:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


_LIBC = ctypes.CDLL(None, use_errno=True)
