"""The files of an open SQLite database: notices that one was deleted, moved away or replaced.

SQLite goes on writing to a file that no path leads to any more, and whatever is written there is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opservice.common.loggers import get_logger
from opservice.domain.errors import StoreFileLost

log = get_logger("opservice.store")


class SqliteFiles:
    """The database file and the two beside it, as they were when the first connection was made.

    They are known by device and inode. A file that was overwritten in place (`cp` onto it) keeps both, and
    is noticed only while it is empty. Nothing here opens a file: closing it would drop SQLite's locks.
    """

    def __init__(self, file: str, when_made: Callable[[], None] = lambda: None) -> None:
        """`when_made` is called when the first connection may have made the files beside the database."""
        self._when_made = when_made
        self._paths = (Path(file), Path(f"{file}-wal"), Path(f"{file}-shm"))
        self._opened: list[tuple[int, int]] | None = None
        self.lost = False
        """For good: only a restart opens the files anew."""
        self.when_lost: Callable[[], object] | None = None
        """Called once, on the thread that notices."""

    def connected(self) -> None:
        """A connection was made, and has read. Raises StoreFileLost when it opened another file."""
        if self._opened is not None:
            self.check()
            return
        try:
            self._opened = [_identity(path) for path in self._paths]
            self._when_made()
        except OSError as error:
            self._lose(self._paths[0], f"has gone while it was opened ({error.strerror})")
            raise StoreFileLost from error

    def check(self) -> None:
        """Three calls of stat. Raises StoreFileLost when they are not those opened."""
        if self._opened is not None and not self.lost:
            for path, opened in zip(self._paths, self._opened, strict=True):
                self._compare(path, opened)
        self.refuse_if_lost()

    def refuse_if_lost(self) -> None:
        """Raises StoreFileLost when it was noticed before; looks at no file."""
        if self.lost:
            raise StoreFileLost

    def closed(self) -> None:
        """All connections were closed: the last one may have deleted the files beside the database."""
        self._opened = None

    def _compare(self, path: Path, opened: tuple[int, int]) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            self._lose(path, "was deleted or moved away")
        except OSError as error:
            # Such as a directory that may not be searched any more: nobody can tell what is there.
            self._lose(path, f"cannot be looked at ({error.strerror})")
        else:
            if (status.st_dev, status.st_ino) != opened:
                self._lose(path, "was replaced by another file")
            elif path == self._paths[0] and status.st_size == 0:
                self._lose(path, "was emptied")

    def _lose(self, path: Path, what: str) -> None:
        if self.lost:
            return
        self.lost = True
        log.error(
            "a file of the database is lost: the server refuses all reads and writes, since what it would"
            " write now would be lost too. Stop the server, put back the files or restore a backup"
            " (docs/databases.md), and start it again",
            file=str(path),
            reason=what,
        )
        if self.when_lost is not None:
            self.when_lost()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
