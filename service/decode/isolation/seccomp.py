"""The seccomp filter of a decode process: the system calls that decoding needs, and no others.

None of them takes a path, makes a socket or a process, or reaches another process. Refused calls return an error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable

from vidlex.service.decode.isolation.syscalls import Architecture, architecture, call

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERROR, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_ALL_THREADS = 1
_KEEP_SPECULATION = 4  # kernels before 5.16 slow a filtered process down otherwise
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000

_FREE = (
    # memory
    *("brk", "madvise", "mmap", "mprotect", "mremap", "munmap"),
    # descriptors that the process has
    *("close", "dup", "lseek", "poll", "ppoll", "pread64", "preadv", "pselect6", "read", "readv", "select"),
    *("recvfrom", "recvmsg", "sendmsg", "write", "writev"),
    # threads and signals of its own
    *("exit", "exit_group", "futex", "membarrier", "pause", "restart_syscall", "rseq", "rt_sigaction"),
    *("rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sched_getaffinity", "sched_yield", "set_robust_list"),
    "sigaltstack",
    # facts and time
    *("clock_getres", "clock_gettime", "clock_nanosleep", "getcpu", "getegid", "geteuid", "getgid", "getpid"),
    *("getppid", "getrandom", "getrusage", "gettid", "gettimeofday", "getuid", "get_mempolicy", "nanosleep"),
    *("sysinfo", "time", "times", "uname"),
)
_CLONE_THREAD = 0x003D0F00  # what pthread_create sets: a thread, in the same namespaces
_CLONE_DETACHED = 0x00400000  # ignored by the kernel; set by musl
_FIONBIO = 0x5421
_PR_SET_NAME, _PR_SET_VMA = 15, 0x53564D41
# not F_SETOWN: it lets the kernel send any signal to any process of the user
_FCNTL = (fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC)

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def is_available() -> bool:
    try:
        call("seccomp", _GET_ACTION_AVAIL, 0, ctypes.create_string_buffer(struct.pack("=I", _ERROR)))
    except OSError:
        return False
    return True


def install_filter() -> None:
    """For all threads, for ever. Requires no_new_privs. Raises OSError."""
    known = architecture()
    if known is None:
        raise OSError(errno.ENOSYS, "no filter for this processor")
    _install(_program(known, os.getpid()))


def refuse(names: Iterable[str], error: int = errno.EPERM) -> None:
    """Let these system calls alone fail from now on, as a container's profile does. Raises OSError."""
    known = architecture()
    if known is None:
        raise OSError(errno.ENOSYS, "no filter for this processor")
    program = _check_architecture(known)
    for name in names:
        program += _block(known.numbers[name], [(_RETURN, 0, 0, _ERROR | error)])
    _install([*program, (_RETURN, 0, 0, _ALLOW)])


def _install(program: list[_Instruction]) -> None:
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(filters)))
    for flags in (_ALL_THREADS | _KEEP_SPECULATION, _ALL_THREADS):
        try:
            if call("seccomp", _SET_MODE_FILTER, flags, header):
                raise OSError(errno.EBUSY, "a thread has a filter of its own")
            return
        except OSError as error:
            if error.errno != errno.EINVAL or flags == _ALL_THREADS:
                raise


def _program(known: Architecture, pid: int) -> list[_Instruction]:
    allow: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW)]
    program = _check_architecture(known)
    for name in _FREE:
        if name in known.numbers:
            program += _block(known.numbers[name], allow)
    for name, checked in (
        ("clone", _argument(0, [_CLONE_THREAD], mask=0xFFFFFFFF ^ _CLONE_DETACHED)),
        ("fcntl", _argument(1, _FCNTL)),
        ("ioctl", _argument(1, [_FIONBIO])),
        ("kill", _argument(0, [pid])),
        ("prctl", _argument(0, [_PR_SET_NAME, _PR_SET_VMA])),
        ("prlimit64", [*_argument(0, [0]), *_argument(2, [0])]),  # reading its own limits
        ("sendto", _argument(4, [0])),  # without an address
        ("tgkill", _argument(0, [pid])),
    ):
        program += _block(known.numbers[name], [*checked, *allow])
    # libc then makes threads with clone, whose flags the filter can see
    program += _block(known.numbers["clone3"], [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)])
    return [*program, (_RETURN, 0, 0, _ERROR | errno.EPERM)]


def _check_architecture(known: Architecture) -> list[_Instruction]:
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, known.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]


def _block(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """``body``, which must return, for one system call."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _argument(position: int, values: Iterable[int], mask: int | None = None) -> list[_Instruction]:
    """Goes on if the 64-bit argument is one of ``values``, of 32 bits; else the call is refused."""
    low = _FIRST_ARGUMENT + 8 * position
    wanted = list(values)
    masked: list[_Instruction] = [] if mask is None else [(_AND, 0, 0, mask)]
    refusal: _Instruction = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    comparisons: list[_Instruction] = [
        (_JUMP_EQUAL, len(wanted) - index, 0, value) for index, value in enumerate(wanted)
    ]
    return [(_LOAD, 0, 0, low + 4), (_JUMP_EQUAL, 1, 0, 0), refusal, (_LOAD, 0, 0, low), *masked, *comparisons, refusal]
