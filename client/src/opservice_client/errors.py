"""What a producer's work raises, and what it may see raised::

    ProducerError
    ├── Failed               raise it: the operation fails with this status
    ├── OperationCancelled   Cancel was called, or the operation ended without us; let it pass
    └── CallFailed           opservice refused a call, or could not be reached
        └── StartFailed      the operation could not be started

Other exceptions that it raises, such as TypeError, mean that it is used wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice_client.connection import GaveUp


class ProducerError(Exception):
    """Something about an operation went wrong."""

    def __reduce__(self) -> tuple[Callable[..., ProducerError], tuple[Any, ...]]:
        """Out of another process, such as one of a pool, it comes as it was raised there."""
        return _made_again, (type(self), self.args, self.__dict__)


class Failed(ProducerError):
    """Raised by the work: fails the operation with this code, message and details.

    Unlike the text of any other exception, this message is shown to whoever may see the operation.
    """

    def __init__(
        self, code: grpc.StatusCode | int, message: str, details: Sequence[Message] = ()
    ) -> None:
        number = code.value[0] if isinstance(code, grpc.StatusCode) else code
        if number == Code.OK or number not in Code.values():
            raise ValueError(f"an operation cannot fail with code {number}")
        super().__init__(message)
        self.status: Status = Status(code=number, message=message)
        for detail in details:
            self.status.details.add().Pack(detail)


class OperationCancelled(ProducerError):
    """The operation is to be cancelled, or has ended already: stop, clean up, and let this pass."""


class CallFailed(ProducerError):
    """opservice refused what was asked of it, or could not be reached for long enough.

    `code` and `details` are those of its last answer; the message also says whom was tried, how often and
    for how long.
    """

    def __init__(self, error: grpc.aio.AioRpcError, target: str) -> None:
        tried = ""
        if isinstance(error, GaveUp):
            times = "once" if error.attempts == 1 else f"{error.attempts} times"
            tried = f" (tried {times} in {error.seconds:.1f} s)"
        super().__init__(f"{target}: {error.code().name}: {error.details()}{tried}")
        self.code: grpc.StatusCode = error.code()
        self.details: str = error.details() or ""


class StartFailed(CallFailed):
    """The same of `start`: the operation could not be started."""


def _made_again(
    kind: type[ProducerError], args: tuple[Any, ...], state: dict[str, Any]
) -> ProducerError:
    error = kind.__new__(kind, *args)  # and not by __init__, which takes other arguments
    error.__dict__.update(state)
    return error
