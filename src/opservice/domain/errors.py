"""What can go wrong, as a small tree. Handlers raise; methods/status.py maps each error to its status.

    OpserviceError
    ├── InvalidArgument            the request itself is wrong; names every field
    │   └── IdempotencyKeyReused
    ├── MalformedRequest           the bytes are no message of the method's type
    ├── RequestTooLarge            more bytes or fields than the method takes
    ├── TooManyHeaders
    ├── IamNotServed
    ├── OperationNotFound
    ├── EndpointNotFound
    ├── ServiceUnknown
    ├── Unauthenticated            who calls is not known
    │   ├── CredentialsMissing
    │   └── CredentialsExpired
    ├── PermissionDenied           who calls is known, and may not do this
    │   └── LeaseTokenMismatch
    ├── LimitReached               more than the caller, or all callers, may have at a time
    │   ├── RateLimited
    │   ├── TooManyFailures
    │   ├── TooManyWaits
    │   ├── TooManyLists
    │   └── TooManyOperations
    ├── KeysUnavailable            the keys that tokens are checked with cannot be read
    ├── PreconditionFailed         the request is fine, the operation's state is not
    │   ├── OperationDone
    │   ├── OperationNotCancellable
    │   └── OperationRunning
    ├── StoreError                 the database could not serve the request
    │   ├── StoreUnavailable       for now: try again
    │   │   ├── StoreBusy
    │   │   └── StoreFileLost
    │   └── StoreFull
    ├── ServerBusy                 more is in progress, or unread, than the server takes on
    ├── WatchOutdated              a stream that follows many operations must begin anew
    ├── ServerStopping             a stream ends because the server does
    ├── BackupFailed               no backup was made; the message is for the operator
    ├── ComponentFailed            a part of the server failed (runtime/components.py)
    └── StartupError               the server refuses to start; the message is for the operator

The docstring of an exception is its default message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opservice.domain.operation import Record


class OpserviceError(Exception):
    """Something went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or type(self).__doc__)

    @property
    def message(self) -> str:
        """In words for who made the call, or for the operator."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, in the words of google.rpc.BadRequest."""

    field: str
    description: str


class InvalidArgument(OpserviceError):
    """The request is not valid."""

    def __init__(self, violations: Sequence[Violation], message: str = "") -> None:
        super().__init__(message or "; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class IdempotencyKeyReused(InvalidArgument):
    """The idempotency key was used before with another request."""

    def __init__(self) -> None:
        super().__init__([Violation("idempotency_key", "was used before with another request")])


class MalformedRequest(OpserviceError):
    """The request is not a valid message of its type"""


class RequestTooLarge(OpserviceError):
    """The request is larger than the method takes."""


class IamNotServed(OpserviceError):
    """This server issues no IAM tokens: give the SDK a token (iam_token), which is sent as it is."""


class TooManyHeaders(OpserviceError):
    """The call has more headers than the server takes."""


class OperationNotFound(OpserviceError):
    """The operation does not exist, has expired, or may not be seen by the caller."""

    def __init__(self, operation_id: str, *, hidden: bool = False) -> None:
        """`hidden` when it exists, and the caller may not see it: never to be told to them."""
        super().__init__(f"Operation {operation_id} not found")
        self.operation_id = operation_id
        self.hidden = hidden


class EndpointNotFound(OpserviceError):
    """There is no API endpoint with this id."""


class ServiceUnknown(OpserviceError):
    """This server has no such service."""


class Unauthenticated(OpserviceError):
    """The credentials are not valid."""


class CredentialsMissing(Unauthenticated):
    """No credentials: send the header `authorization: Bearer TOKEN`."""


class CredentialsExpired(Unauthenticated):
    """The credentials have expired."""


class PermissionDenied(OpserviceError):
    """You may not do this."""


class LeaseTokenMismatch(PermissionDenied):
    """The lease token is not the one that started the operation."""


class LimitReached(OpserviceError):
    """A limit is reached. `retry_seconds` is when to try again, `subject` what is limited."""

    def __init__(self, message: str, subject: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_seconds = retry_seconds


class RateLimited(LimitReached):
    """Too many calls a second."""


class TooManyFailures(LimitReached):
    """Too many calls with bad credentials."""


class TooManyWaits(LimitReached):
    """Too many calls that wait or watch."""


class TooManyLists(LimitReached):
    """Too many lists at once."""


class TooManyOperations(LimitReached):
    """Too many operations run."""


class KeysUnavailable(OpserviceError):
    """Tokens cannot be checked at the moment: the keys are not available."""


class PreconditionFailed(OpserviceError):
    """The operation is not in a state that allows this."""

    def __init__(self, record: Record, message: str = "") -> None:
        super().__init__(message)
        self.record = record


class OperationDone(PreconditionFailed):
    """The operation is done already, and stays as it is."""


class OperationNotCancellable(PreconditionFailed):
    """The operation cannot be cancelled."""


class OperationRunning(PreconditionFailed):
    """The operation is still running: only a done operation can be deleted."""


class StoreError(OpserviceError):
    """The database failed."""


class StoreUnavailable(StoreError):
    """The database is not available at the moment."""


class StoreBusy(StoreUnavailable):
    """Another transaction has held the operation for too long."""


class StoreFileLost(StoreUnavailable):
    """The server has lost its database file, and must be restarted."""


class StoreFull(StoreError):
    """The database has no space left: reads go on, writes are refused."""


class ServerBusy(OpserviceError):
    """The server has too many calls in progress: try again later."""


class WatchOutdated(OpserviceError):
    """The stream cannot be continued: forget what it told, and call again without a resume token."""


class ServerStopping(OpserviceError):
    """The server is being stopped: ask again."""


class BackupFailed(OpserviceError):
    """No backup was made."""


class StartupError(OpserviceError):
    """The server cannot start."""
