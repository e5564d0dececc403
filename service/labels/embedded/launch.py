"""Becomes the embedded server. Run as a script, never imported: ``launch.py PARENT_PID LOCK_FILE BINARY CONFIG``.

Between fork and exec it sets what only the child itself can set, in a process that has no other threads:
the server is told to end when its parent ends, however that happens, and it holds a lock on its data folder for
exactly as long as it lives. The lock is an open file, so the kernel gives it back even after kill -9, and a second
server on the same files cannot come up whatever else goes wrong.
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
        # SIGTERM, not SIGKILL: the server then also ends the child that may be rewriting its log.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit(EXIT_ORPHAN)
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(EXIT_LOCKED)
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())  # exec keeps the process id
    os.set_inheritable(lock, True)
    os.execv(binary, [binary, config])


if __name__ == "__main__":
    main()
