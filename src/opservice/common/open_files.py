"""How many connections fit in the files that a process may open."""

from __future__ import annotations

import resource

_OTHER_FILES = 256
"""For the database, logs, and the rest."""


def connections_for_each(most: int, fronts: int) -> int:
    """`most`, or fewer, if so many of each of the fronts are more than the process may have.

    Lets the process open as many files as it may.
    """
    files, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        files = allowed
    if files == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, (files - _OTHER_FILES) // fronts))
