"""The Unix socket of `--listen unix:PATH`. It gets its mode, and is removed at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opservice.domain.errors import StartupError

_ONLY_OWNER = 0o177


@contextmanager
def bound(
    path: Path, mode: int, bind: Callable[[], object], *, owns_process: bool = True
) -> Iterator[None]:
    """Calls `bind`, which makes the socket, and removes the socket when the block ends.

    Nobody else can connect before the socket has its mode. For this the umask is changed, which is that of
    the whole process: without `owns_process` it is left, and the directory has to be private.

    Replaces a socket that a killed server has left there. Raises StartupError when the socket belongs to a
    running server, when another file is there, or when the socket cannot be made.
    """
    _make_room(path)
    umask = os.umask(_ONLY_OWNER) if owns_process else None
    try:
        bind()
    except RuntimeError as error:
        raise StartupError(
            f"cannot listen on unix:{path}: the directory must exist and be writable"
        ) from error
    finally:
        if umask is not None:
            os.umask(umask)
    try:
        path.chmod(mode)
        made = path.lstat()
    except OSError as error:
        raise StartupError(f"cannot listen on unix:{path}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # gRPC has removed it
            if os.path.samestat(path.lstat(), made):
                path.unlink()


def _make_room(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise StartupError(f"cannot listen on unix:{path}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        refused = probe.connect_ex(str(path))
    if refused != errno.ECONNREFUSED:
        # Also when it is not clear: a server whose socket was removed gets no more callers.
        raise StartupError(f"cannot listen on unix:{path}: another server listens there")
    try:
        path.unlink()
    except OSError as error:
        raise StartupError(f"cannot listen on unix:{path}: {error.strerror}") from error
