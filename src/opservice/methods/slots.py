"""How much may go on at once: so much for each caller, and so much in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sys import maxsize

from opservice.domain.errors import LimitReached


class Slots:
    """Counts what callers hold at a time. Callers who hold nothing are forgotten.

    `refuse` makes the error for a caller who holds `most_of_caller`, or, given None, for one who comes when
    `most` are held in all.
    """

    def __init__(
        self,
        most_of_caller: int,
        refuse: Callable[[str | None], LimitReached],
        most: int = maxsize,
    ) -> None:
        self._most_of_caller = most_of_caller
        self._refuse = refuse
        self._most = most
        self._in_all = 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        """Holds a slot during the block. Raises what `refuse` makes when there is none."""
        if self._of[caller] >= self._most_of_caller:
            raise self._refuse(caller)
        if self._in_all >= self._most:
            raise self._refuse(None)
        self._in_all += 1
        self._of[caller] += 1
        try:
            yield
        finally:
            self._in_all -= 1
            self._of[caller] -= 1
            if not self._of[caller]:
                del self._of[caller]
