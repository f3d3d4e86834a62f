"""How many connections fit in the files that a process may open."""

from __future__ import annotations

import resource

_OTHER_FILES = 256
"""For the database, logs, and the rest."""


def connections_of(most: int, part: float = 1) -> int:
    """`most`, or fewer, if they are more than this part of what the process may have.

    Lets the process open as many files as it may.
    """
    files, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        files = allowed
    if files == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, int((files - _OTHER_FILES) * part)))
