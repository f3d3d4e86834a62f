"""The operation: its record, the commands that change it, what comes of them, and its ids.

Standard library only. Payloads (metadata, response, error) are serialized protobuf, into which nothing below
methods/ looks.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from opservice.domain.identity import Identity

Microseconds: TypeAlias = int
"""A duration, or a time since the Unix epoch, UTC.

They are integers: exact on every database, and one `divmod` from protobuf.
"""

SECOND: Microseconds = 1_000_000
DAY: Microseconds = 86_400 * SECOND

DEFAULT_ID_PREFIX = "ops"

LEASE_TOKEN_HASH_BYTES = 16

_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"
_ID_CHARACTERS = 17  # of 5 bits each, 85 in all


class CancelPolicy(IntEnum):
    """What Cancel does to a running operation. The numbers are those of the wire."""

    IMMEDIATE = 1
    """Done at once, CANCELLED."""
    COOPERATIVE = 2
    """The producer is asked to stop and has a grace period to end the operation itself."""
    UNSUPPORTED = 3
    """Refused."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of the work is done, as the producer counts it. A total of 0 is one that is not known."""

    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is kept: a serialized `google.rpc.Status` and its code beside it, for queries."""

    code: int
    status: bytes


_RECORD_BYTES = 1_500
"""What a record takes beside its payloads."""


@dataclass(frozen=True, slots=True)
class Record:
    """An operation with what the server keeps beside it: one row, in the order of its columns.

    `revision` is 1 at first and grows with every change. `lease` and `retention` are durations; they end at
    `lease_expires_at` and `expires_at`. There is an `expires_at` only when the operation is done. When it was
    deleted, that is the negative of `modified_at`.
    """

    id: str
    parent: str
    method: str
    description: str
    created_by: str
    created_at: Microseconds
    modified_at: Microseconds
    revision: int
    done: bool
    metadata: bytes | None
    response: bytes | None
    error: bytes | None
    error_code: int | None
    cancel_policy: CancelPolicy
    cancel_requested_at: Microseconds | None
    progress_done: int | None
    progress_total: int | None
    progress_unit: str | None
    progress_message: str | None
    lease_token_hash: bytes | None
    lease: Microseconds | None
    lease_expires_at: Microseconds | None
    timeout_at: Microseconds | None
    retention: Microseconds
    expires_at: Microseconds | None
    request_hash: bytes | None
    cancelled_by: str
    """Whose Cancel was the first to be accepted; empty when nobody's was, and without authentication."""
    producer: str
    """Who called Start; empty without authentication."""
    labels: str
    """As labels.py has them."""
    traceparent: str
    """Of whoever called Start, as in W3C Trace Context; empty when they gave none."""

    @property
    def payload_bytes(self) -> int:
        """Of metadata, response and error together."""
        return sum(len(each) for each in (self.metadata, self.response, self.error) if each)

    @property
    def kept_bytes(self) -> int:
        """About what it takes to keep it in memory."""
        return _RECORD_BYTES + self.payload_bytes

    @property
    def progress(self) -> Progress | None:
        """What the producer reported last; None when it reported nothing."""
        if self.progress_done is None:
            return None
        return Progress(
            self.progress_done,
            self.progress_total or 0,
            self.progress_unit or "",
            self.progress_message or "",
        )


@dataclass(frozen=True, slots=True)
class Removed:
    """An operation that is not there any more, or is none of those that are followed."""

    id: str


class Change(NamedTuple):
    """What is known of an operation that has changed, without its payloads. `gone` is whether it is there."""

    id: str
    parent: str
    created_by: str
    created_at: Microseconds
    modified_at: Microseconds
    revision: int
    expires_at: Microseconds | None
    gone: bool

    @classmethod
    def end_of(cls, record: Record) -> Change:
        """That the operation is gone, which was this before."""
        return cls(
            record.id,
            record.parent,
            record.created_by,
            record.created_at,
            record.modified_at,
            record.revision,
            record.expires_at,
            gone=True,
        )


class Origin(NamedTuple):
    """What decides who may see an operation; it never changes while the operation is there."""

    id: str
    parent: str
    created_by: str


@dataclass(frozen=True, slots=True)
class Start:
    """Create a running operation; with `request_hash`, unless the same request created it before.

    `id` is `new_id()`, or `derive_id()` when the caller gave an idempotency key; only then is
    `request_hash` set.
    """

    id: str
    retention: Microseconds
    parent: str = ""
    method: str = ""
    description: str = ""
    created_by: str = ""
    metadata: bytes | None = None
    cancel_policy: CancelPolicy = CancelPolicy.IMMEDIATE
    lease: Microseconds | None = None
    lease_token_hash: bytes | None = None
    timeout: Microseconds | None = None
    request_hash: bytes | None = None
    producer: str = ""
    labels: str = ""
    """As labels.py has them."""
    traceparent: str = ""
    max_running: int | None = None
    """With so many operations of the parent running already, it is refused."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Prolong the lease by its length from now, and report. What is None stays as it was."""

    id: str
    lease_token_hash: bytes | None = None
    metadata: bytes | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """End it with a response. What is None stays as it was."""

    id: str
    response: bytes
    lease_token_hash: bytes | None = None
    metadata: bytes | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """End it with an error. What is None stays as it was."""

    id: str
    error: Failure
    lease_token_hash: bytes | None = None
    metadata: bytes | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End it with this error, or ask its producer to, as the operation's cancel policy says.

    `by` is who asks for it; empty without authentication.
    """

    id: str
    error: Failure
    by: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove it for all callers; only a done operation can be removed. DeleteExpired removes its row."""

    id: str


@dataclass(frozen=True, slots=True)
class LapseLeases:
    """End up to `limit` running operations whose lease was not renewed in time."""

    error: Failure
    limit: int


@dataclass(frozen=True, slots=True)
class ReachTimeouts:
    """End up to `limit` running operations whose timeout has passed."""

    error: Failure
    limit: int


@dataclass(frozen=True, slots=True)
class EndCancelGrace:
    """End up to `limit` cancelling operations whose producer had `grace` to do so and did not."""

    grace: Microseconds
    limit: int


@dataclass(frozen=True, slots=True)
class DeleteExpired:
    """Delete the rows of up to `limit` operations that were deleted, or have expired, `kept` ago.

    Until then they are there for nobody; who follows their parent through another process learns by them
    that they are gone.
    """

    limit: int
    kept: Microseconds = 0


Command = Start | Renew | Complete | Fail | Cancel | Delete
"""What is asked of one operation."""

Sweep = LapseLeases | ReachTimeouts | EndCancelGrace | DeleteExpired
"""What housekeeping asks of whichever operations it is time for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to.

    `record` is the operation after it (of Delete: as it was left behind); `changed` is false when the command
    was a repeat. `owned` is for Start: its lease token is the operation's, so this caller is the producer.
    """

    record: Record
    changed: bool
    owned: bool = True


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep changed."""

    ids: tuple[str, ...]
    """As many as its limit when more may wait."""
    lasted: tuple[Microseconds, ...] = ()
    """How long each had run that it ended, in the order of the ids; empty when they were deleted."""
    expired: int = 0
    """Of the deleted: those that had expired. A call had deleted the others, and left their rows."""


def start_by(
    identity: Identity,
    *,
    retention: Microseconds,
    id_prefix: str = "",
    idempotency_key: str = "",
    request_hash: bytes | None = None,
    parent: str = "",
    method: str = "",
    description: str = "",
    created_by: str = "",
    metadata: bytes | None = None,
    cancel_policy: CancelPolicy = CancelPolicy.IMMEDIATE,
    lease: Microseconds | None = None,
    lease_token: str = "",
    timeout: Microseconds | None = None,
    labels: str = "",
    traceparent: str = "",
    max_running: int | None = None,
) -> Start:
    """The Start that this producer asks for.

    With an idempotency key the id is the one that the key always leads to, and the `request_hash` that goes
    with it tells a repeat from another request under the same key. Without a key the id is new. The operation
    is created by the producer, unless they name for whom: `created_by`.
    """
    prefix = id_prefix or DEFAULT_ID_PREFIX
    if idempotency_key:
        # The keys of the user that a producer names are not its own, and no other producer's. Without
        # authentication, who it names is all that tells callers apart.
        subject = identity.subject
        owner = f"{subject}\n{created_by}" if subject else created_by
        id_ = derive_id(prefix, owner, parent, idempotency_key)
    else:
        id_ = new_id(prefix)
    return Start(
        id=id_,
        retention=retention,
        parent=parent,
        method=method,
        description=description,
        created_by=created_by or identity.subject,
        metadata=metadata,
        cancel_policy=cancel_policy,
        lease=lease,
        lease_token_hash=hash_lease_token(id_, lease_token),
        timeout=timeout,
        request_hash=request_hash if idempotency_key else None,
        producer=identity.subject,
        labels=labels,
        traceparent=traceparent,
        max_running=max_running,
    )


def new_id(prefix: str = DEFAULT_ID_PREFIX) -> str:
    """A random id: the prefix and 85 random bits in base32hex."""
    return prefix + _base32hex(os.urandom(11))


def derive_id(prefix: str, caller: str, parent: str, idempotency_key: str) -> str:
    """The id that this caller's idempotency key always leads to under this parent."""
    return prefix + _base32hex(_digest(caller, parent, idempotency_key))


def hash_lease_token(operation_id: str, lease_token: str) -> bytes | None:
    """What is stored of a lease token, and None for none.

    Bound to the operation, so that equal tokens do not show as equal. Since only digests are ever
    compared, how long a comparison takes tells nothing about the token. Half of SHA-256 is as hard to find
    another token for as a key of 128 bits, and takes half the space.
    """
    return _digest(operation_id, lease_token)[:LEASE_TOKEN_HASH_BYTES] if lease_token else None


def _digest(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()


def _base32hex(data: bytes) -> str:
    number = int.from_bytes(data[:11], "big") >> 3
    return "".join(
        _BASE32HEX[(number >> shift) & 31] for shift in range(5 * (_ID_CHARACTERS - 1), -1, -5)
    )
