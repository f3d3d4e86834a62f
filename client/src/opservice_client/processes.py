"""What a fork does to producers.

gRPC does not survive a fork while asyncio calls are in progress: the child has its locks, and none of the
threads that would release them. So a producer connects on first use, which may be after a fork; and in a
child of a process where asyncio gRPC was running, the first use raises instead of waiting for ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_POLLER = "_poll_wrapper"
"""The thread of grpc.aio, while there is an asyncio channel or server, has this in its name."""


T = TypeVar("T")

_known: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_kept: list[object] = []
_parent_ran_grpc = False
_is_unusable = False


def tell_after_fork(each: T, forget: Callable[[T], None]) -> None:
    """Has `forget(each)` called in a child of this process. Keeps no reference to `each`.

    It drops what belongs to the parent, without closing it.
    """
    _known[each] = forget


def keep(*of_the_parent: object) -> None:
    """Never lets these go: their finalizers would call into a gRPC that may be dead in this process."""
    _kept.extend(of_the_parent)


def check_usable() -> None:
    """Raises RuntimeError in a forked process that cannot use asyncio gRPC."""
    if _is_unusable:
        raise RuntimeError(
            "this process was forked while its parent ran gRPC with asyncio, and gRPC does not work here."
            " Use a Producer only after the fork, in the child (making it before is fine),"
            ' or start processes anew: multiprocessing.set_start_method("spawn")'
        )


def _before_fork() -> None:
    global _parent_ran_grpc
    _parent_ran_grpc = any(_POLLER in thread.name for thread in threading.enumerate())


def _after_fork_in_child() -> None:
    global _is_unusable
    _is_unusable = _is_unusable or _parent_ran_grpc
    for each, forget in list(_known.items()):
        forget(each)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
