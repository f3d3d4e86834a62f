"""Keeps files private to the server's user, and refuses places where others could replace them."""

from __future__ import annotations

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path

from opservice.domain.errors import StartupError


def group_id(name: str) -> int | None:
    """The id of the group with this name or number, None for "". Raises StartupError without such a group."""
    if not name:
        return None
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise StartupError(f"--file-group {name}: there is no such group") from error


def check_place(path: Path) -> None:
    """Raises StartupError when the file is a symbolic link, or everybody may replace it.

    In a directory with the sticky bit, such as /tmp, others can add files but not replace them.
    """
    if path.is_symlink():
        raise StartupError(f"{path} is a symbolic link: give the file that it leads to")
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StartupError(
            f"the directory {path.parent} may be written by everybody, who could replace {path.name}:"
            f" run 'chmod o-w {path.parent}'"
        )


def make_private(path: Path, group: int | None, group_mode: int, *, create: bool = False) -> None:
    """Gives the file mode 0600. With a group, gives it that group, and adds `group_mode` to the mode.

    With `create` a missing file is made; without it, a missing file is left alone. Raises StartupError when
    that cannot be done.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    try:
        if create:
            with suppress(FileExistsError):
                os.close(os.open(path, flags, 0o600))
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise StartupError(f"{path} is a symbolic link: remove it")
        if not stat.S_ISREG(found.st_mode):
            return  # such as a pipe or a device, which is not ours
        if group is not None and found.st_gid != group:
            os.chown(path, -1, group, follow_symlinks=False)
        mode = 0o600 if group is None else 0o600 | group_mode
        if stat.S_IMODE(found.st_mode) != mode:
            path.chmod(mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(
            f"{path} cannot be kept from other users ({error.strerror}): it must belong to the server's user,"
            " who must be a member of --file-group"
        ) from error
