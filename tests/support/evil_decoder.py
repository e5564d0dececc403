"""The decode function of a process that a file has taken over: tries to reach whatever a decode process must not.

Each attempt is harmless where it succeeds, and belongs to one of the targets of `service.decode.isolation.report`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_SETFL, F_SETOWN, fcntl
from typing import Any

from vidlex.model.decode.limits import DecodeError
from vidlex.model.decode.source import OpenFile
from vidlex.model.types import FrameBatch

_F_SETSIG = 10
_LIBC = ctypes.CDLL(None, use_errno=True)
_IS_X86 = platform.machine() == "x86_64"
_NUMBERS = {  # x86_64, aarch64
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "getpgid": (121, 155),
    "rt_sigqueueinfo": (129, 138),
    "setpriority": (141, 140),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "inotify_init1": (294, 26),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "openat2": (437, 437),
    "mq_open": (240, 180),
    "shmget": (29, 194),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "personality": (135, 92),
    "capset": (126, 91),
    "mkdirat": (258, 34),
    "sched_setaffinity": (203, 122),
}


def _call(name: str, *arguments: Any, offset: int = 0) -> int:
    number = _NUMBERS[name][0 if _IS_X86 else 1]
    if number is None:
        raise OSError(errno.ENOSYS, name)
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in (number + offset, *arguments)]
    result = int(_LIBC.syscall(*words))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


# --- files


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        file.read(1)


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))


def _file_attempts(facts: dict[str, Any], file: int) -> dict[str, Callable[[], object]]:
    folder, pid = facts["folder"], facts["pid"]
    return {
        "read /etc/passwd": lambda: _read("/etc/passwd"),
        "read the data folder": lambda: _read(f"{folder}/secret"),
        "list the data folder": lambda: os.listdir(folder),  # noqa: PTH208
        "read another upload": lambda: _read(f"{folder}/other.mp4"),
        "openat2": lambda: _close(_call("openat2", -100, b"/etc/passwd", ctypes.create_string_buffer(24), 24)),
        "write a file": lambda: _write(f"{folder}/written"),
        "write to /tmp": lambda: _write(f"/tmp/vidlex-{os.getpid()}"),
        "make a folder": lambda: _call("mkdirat", -100, f"{folder}/made".encode(), 0o700),
        "remove a file": lambda: os.unlink(f"{folder}/removable"),  # noqa: PTH108
        "rename a file": lambda: os.rename(f"{folder}/renamable", f"{folder}/renamed"),  # noqa: PTH104
        "open the upload to write": lambda: os.close(os.open(f"/proc/self/fd/{file}", os.O_RDWR)),
        "write to the upload": lambda: os.pwrite(file, b"x", 0),
        "read the environment of the service": lambda: _read(f"/proc/{pid}/environ"),
        "open the memory of the service": lambda: _read(f"/proc/{pid}/mem"),
    }


# --- network and sockets


def _connect(family: int, kind: int, address: Any, message: bytes = b"") -> None:
    with socket.socket(family, kind) as probe:
        probe.settimeout(5)
        probe.connect(address)
        if message:
            probe.sendall(message)
            if not probe.recv(16):
                raise OSError("no answer")


def _network_attempts(facts: dict[str, Any]) -> dict[str, Callable[[], object]]:
    loopback = ("127.0.0.1", facts["port"])
    return {
        "TCP": lambda: _connect(socket.AF_INET, socket.SOCK_STREAM, loopback),
        "UDP": lambda: _connect(socket.AF_INET, socket.SOCK_DGRAM, loopback, b"x" if facts["answers_udp"] else b""),
        "serve TCP": lambda: socket.create_server(loopback, reuse_port=True).close(),
        "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    }


def _socket_attempts(facts: dict[str, Any]) -> dict[str, Callable[[], object]]:
    return {
        "the label store's socket": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, facts["store"], b"PING\r\n"),
        "an abstract socket": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + facts["abstract"]),
    }


# --- the service's process


def _signal_by_owner(pid: int) -> None:
    """The service counts the signal: nothing else tells whether it arrives."""
    ends = socket.socketpair()
    fcntl(ends[0], F_SETOWN, pid)
    fcntl(ends[0], _F_SETSIG, signal.SIGUSR1)
    fcntl(ends[0], F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    ends[1].send(b"x")
    raise OSError("not known")


def _signal_attempts(facts: dict[str, Any]) -> dict[str, Callable[[], object]]:
    pid = facts["pid"]
    info = ctypes.create_string_buffer(struct.pack("iii116x", signal.SIGCONT, 0, -1))
    return {
        "signal the service": lambda: os.kill(pid, signal.SIGCONT),
        "queue a signal": lambda: _call("rt_sigqueueinfo", pid, signal.SIGCONT, info),
        "signal by ownership of a descriptor": lambda: _signal_by_owner(pid),
    }


def _control_attempts(facts: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Of a process of the same user, without a barrier but the filter of system calls."""
    pid = facts["pid"]
    return {
        "limit the service's descriptors": lambda: _set_limit(pid),
        "change the service's priority": lambda: _call("setpriority", 0, pid, 1),
        "bind the service to a CPU": lambda: _call(
            "sched_setaffinity", pid, 128, ctypes.create_string_buffer(b"\xff" * 128)
        ),
        "pidfd of the service": lambda: _close(_call("pidfd_open", pid, 0)),
    }


def _set_limit(pid: int) -> None:
    import resource

    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _memory_attempts(facts: dict[str, Any]) -> dict[str, Callable[[], object]]:
    buffer, secret = ctypes.create_string_buffer(8), ctypes.create_string_buffer(b"password", 8)
    same = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(secret), 8))
    local = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(buffer), 8))
    remote = ctypes.create_string_buffer(struct.pack("PN", facts["secret_address"], 8))

    def trace() -> None:
        seize, detach = 0x4206, 17
        ctypes.set_errno(0)
        if _LIBC.ptrace(seize, facts["pid"], None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        _LIBC.ptrace(detach, facts["pid"], None, None)

    return {
        "read the service's memory": lambda: _call("process_vm_readv", facts["pid"], local, 1, remote, 1, 0),
        "write the service's memory": lambda: _call("process_vm_writev", facts["pid"], same, 1, remote, 1, 0),
        "trace the service": trace,
    }


# --- processes, privileges, and the rest of the kernel


def _clone(flags: int) -> None:
    child = _call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _process_attempts() -> dict[str, Callable[[], object]]:
    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    def clone3() -> None:
        arguments = struct.pack("QQQQQQQQ", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        child = _call("clone3", ctypes.create_string_buffer(arguments), len(arguments))
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    return {"fork": fork, "clone": lambda: _clone(0), "clone3": clone3}


def _kernel_attempts(file: int) -> dict[str, Callable[[], object]]:
    buffer = ctypes.create_string_buffer(256)
    keyring, handle = -3, ctypes.create_string_buffer(struct.pack("Ii128x", 128, 0))
    return {
        "memory that no limit counts": lambda: _close(_call("memfd_create", b"x", 0)),
        "System V memory": lambda: _call("shmget", 0, 4096, 0o600 | 0o1000),
        "a message queue": lambda: _close(_call("mq_open", b"vidlex", 0o102, 0o600, None)),
        "io_uring": lambda: _close(_call("io_uring_setup", 1, buffer)),
        "bpf": lambda: _close(_call("bpf", 0, buffer, 72)),
        "userfaultfd": lambda: _close(_call("userfaultfd", 1)),
        "perf_event_open": lambda: _close(_call("perf_event_open", buffer, 0, -1, -1, 0)),
        "keyctl": lambda: _call("keyctl", 0, keyring, 0),
        "add_key": lambda: _call("add_key", b"user", b"vidlex", b"x", 1, keyring),
        "inotify": lambda: _close(_call("inotify_init1", 0)),
        "personality": lambda: _call("personality", 0xFFFFFFFF),
        "a file's handle": lambda: _call(
            "name_to_handle_at", -100, b"/etc/passwd", handle, ctypes.create_string_buffer(8), 0
        ),
        "the upload's mode": lambda: os.fchmod(file, 0o600),
        "own a descriptor for another process": lambda: fcntl(file, F_SETOWN, os.getppid()),
        "process group": lambda: _call("getpgid", 0),
        "x32 numbers": lambda: _call("getpgid", 0, offset=0x40000000),
        "a pipe": lambda: [_close(end) for end in os.pipe()],
        "a pair of sockets": lambda: [end.close() for end in socket.socketpair()],
        "a new user namespace": lambda: _call("unshare", 0x10000000),
        "a new mount namespace": lambda: _call("unshare", 0x00020000),
        "mount": lambda: _call("mount", b"x", b"/", b"tmpfs", 0, None),
        "become root": lambda: os.setresuid(0, 0, 0),
        "chroot": lambda: os.chroot("/"),
    }


def decode(file: OpenFile, **_: Any) -> Iterator[FrameBatch]:
    """The attempts that have succeeded, by target, as the text of an error and, whole, for the log."""
    with file.open() as opened:
        facts = json.loads(opened.read())
    groups = {
        "files": _file_attempts(facts, file.descriptor),
        "network": _network_attempts(facts),
        "sockets": _socket_attempts(facts),
        "signals": _signal_attempts(facts),
        "memory": _memory_attempts(facts),
        "processes": _process_attempts(),
        "system_calls": {**_control_attempts(facts), **_kernel_attempts(file.descriptor)},
    }
    done: dict[str, list[str]] = {}
    for target, attempts in groups.items():
        for name, attempt in attempts.items():
            with suppress(OSError):
                attempt()
                done.setdefault(target, []).append(name)
    raise DecodeError("undecodable_video", json.dumps(done), internal=json.dumps(done))
    yield


def exhaust(file: OpenFile, **_: Any) -> Iterator[FrameBatch]:
    """Takes memory (the file says how much) and keeps it, makes threads without end, or gives descriptors away."""
    with file.open() as opened:
        what, _, amount = opened.read().decode().strip().partition(" ")
    if what == "memory":
        taken = bytearray(int(amount) * 2**20)
        taken[::4096] = b"x" * len(taken[::4096])
        while taken:
            signal.pause()
    if what == "threads":
        threading.stack_size(64 * 1024)
        for number in range(100_000):
            try:
                threading.Thread(target=signal.pause, daemon=True).start()
            except RuntimeError:
                raise DecodeError("undecodable_video", f"{number} threads") from None
    if what == "descriptors":
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=int(sys.argv[1]))
        message = b'{"error": "undecodable_video", "message": "given away"}'
        data = struct.pack("!I", len(message)) + message
        socket.send_fds(channel, [data[:2]], [1])  # a reader that takes descriptors gets one with each part
        for position in range(2, len(data)):
            time.sleep(0.002)
            socket.send_fds(channel, [data[position : position + 1]], [1])
        signal.pause()
    raise AssertionError(what)
    yield
