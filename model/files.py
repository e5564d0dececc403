from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replace_atomically(path: Path, *, is_shared: bool = False, is_synced: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success rename it to ``path``, on error remove it.

    Readers see the old content or the new content, never a part of it. The temporary name is fixed, so that a killed
    process leaves one file that the next write replaces. With ``is_shared`` it is unique to the thread, for files that
    several processes write without a lock. With ``is_synced`` the content reaches the disk before the rename.
    """
    owner = f".{os.getpid()}-{threading.get_ident()}" if is_shared else ""
    temporary = path.with_name(f"{path.name}{owner}.partial")
    try:
        yield temporary
        if is_synced:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Replace or make a safetensors file.

    safetensors' own ``save_file`` writes 0600 whatever the umask is: a service of another user could not read its
    model. Here the umask holds, as for any file, and an existing file keeps its permissions.
    """
    from safetensors.torch import save_file  # imports torch

    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(mode)


def digest_files(paths: Iterable[Path]) -> str:  # 16 hex digits over their contents, in this order
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
