"""Executes the embedded server in this process: ``launch.py PARENT_PID LOCK_FILE BINARY CONFIG``.

Only the child process itself can request SIGTERM for the death of its parent, and lock its data folder until it ends:
the kernel releases the lock even after kill -9.
"""

import ctypes
import fcntl
import os
import signal
import sys

EXIT_LOCKED = 75
EXIT_ORPHAN = 76
PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, lock_file, binary, config = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    if sys.platform == "linux":
        # SIGTERM, not SIGKILL: the server then also stops a child process that rewrites its log.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit(EXIT_ORPHAN)
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(EXIT_LOCKED)
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())  # exec does not change the process id
    os.set_inheritable(lock, True)
    os.execv(binary, [binary, config])


if __name__ == "__main__":
    main()
