"""opservice.v1.ProducerService: what each method does, and when it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from opservice._proto.opservice.demo.v1.container_registry_pb2 import ScanMetadata, ScanResult
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from support.client import OTHER_TOKEN, TOKEN, Client, packed, refused

RESPONSE = packed(ScanResult(id="s1"))
ERROR = Status(code=Code.UNAVAILABLE, message="the scanner is down")
LEASE = Duration(seconds=3600)

Write = Callable[..., Any]


def renew(client: Client, id_: str, **fields: Any) -> None:
    client.renew(id_, **fields)


def complete(client: Client, id_: str, **fields: Any) -> None:
    client.complete(id_, response=RESPONSE, **fields)


def fail(client: Client, id_: str, **fields: Any) -> None:
    client.fail(id_, ERROR, **fields)


each_write = pytest.mark.parametrize("write", [renew, complete, fail])


def test_start_gives_an_id_of_twenty_characters_and_the_default_prefix(client: Client) -> None:
    id_ = client.started()

    assert len(id_) == 20
    assert id_.startswith("ops")


def test_start_gives_an_id_with_the_prefix_asked_for(client: Client) -> None:
    assert client.started(id_prefix="c8r").startswith("c8r")


def test_every_start_without_a_key_makes_an_operation(client: Client) -> None:
    first, second = client.start(description="same"), client.start(description="same")

    assert first.operation.id != second.operation.id
    assert first.owned
    assert second.owned


@pytest.mark.parametrize("text", ["x" * 256, "я" * 256, "🚀" * 256, "line one\nline two"])
def test_start_takes_a_description_of_256_characters_of_any_kind(client: Client, text: str) -> None:
    assert client.get(client.started(description=text)).description == text


def test_start_takes_every_field_at_its_limit(client: Client) -> None:
    year = Duration(seconds=365 * 86_400)
    id_ = client.started(
        parent="p" * 256,
        method="m" * 256,
        created_by="c" * 64,
        lease=Duration(seconds=86_400),
        lease_token="t" * 128,
        timeout=year,
        retention=year,
        idempotency_key="k" * 128,
    )

    assert client.get(id_).created_by == "c" * 64


def test_start_takes_a_lease_and_a_token_as_short_as_allowed(client: Client) -> None:
    id_ = client.started(lease=Duration(seconds=1), lease_token="t" * 16)

    assert client.renew(id_, lease_token="t" * 16).HasField("lease_expires_at")


def test_renew_says_when_the_lease_lapses(client: Client) -> None:
    id_ = client.started(lease=LEASE, lease_token=TOKEN)

    renewed = client.renew(id_, lease_token=TOKEN)

    modified, lapses = renewed.operation.modified_at, renewed.lease_expires_at
    assert lapses.ToMicroseconds() - modified.ToMicroseconds() == pytest.approx(3600e6, abs=1e6)


def test_renew_without_a_lease_says_no_time(client: Client) -> None:
    assert not client.renew(client.started()).HasField("lease_expires_at")


def test_renew_replaces_the_metadata(client: Client) -> None:
    id_ = client.started(metadata=packed(ScanMetadata(image_id="old")))
    new = packed(ScanMetadata(image_id="new"))

    client.renew(id_, metadata=new)

    assert client.get(id_).metadata == new


@each_write
def test_a_write_without_metadata_leaves_it_as_it_was(client: Client, write: Write) -> None:
    metadata = packed(ScanMetadata(image_id="i"))
    id_ = client.started(metadata=metadata)

    write(client, id_)

    assert client.get(id_).metadata == metadata


@pytest.mark.parametrize("write", [complete, fail])
def test_the_last_write_may_replace_the_metadata(client: Client, write: Write) -> None:
    id_ = client.started(metadata=packed(ScanMetadata(image_id="old")))
    new = packed(ScanMetadata(image_id="new"))

    write(client, id_, metadata=new)

    assert client.get(id_).metadata == new


@pytest.mark.parametrize(
    "progress",
    [
        Progress(),
        Progress(done=5),
        Progress(done=7, total=7, unit="layers", message="слой 7"),
        Progress(done=2**63 - 1, total=2**63 - 1),
    ],
)
def test_renew_takes_progress(client: Client, progress: Progress) -> None:
    id_ = client.started()

    assert not client.renew(id_, progress=progress).operation.done


def test_complete_without_a_response_means_empty(client: Client) -> None:
    operation = client.complete(client.started())

    assert operation.WhichOneof("result") == "response"
    assert operation.response == packed(Empty())


@pytest.mark.parametrize("write", [complete, fail])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_repeat_of_the_last_write_is_fine_and_changes_nothing(
    client: Client, write: Write, token: str
) -> None:
    id_ = client.started(lease_token=token)
    write(client, id_, lease_token=token)
    before = client.get(id_)

    write(client, id_, lease_token=token)

    assert client.get(id_) == before


@each_write
@pytest.mark.parametrize("token", ["", OTHER_TOKEN, TOKEN + "x", TOKEN.upper()])
def test_a_write_with_a_wrong_token_is_refused(client: Client, write: Write, token: str) -> None:
    id_ = client.started(lease_token=TOKEN)
    before = client.get(id_)

    with refused() as refusal:
        write(client, id_, lease_token=token)

    assert refusal.code == StatusCode.PERMISSION_DENIED
    assert refusal.reason == "LEASE_TOKEN_MISMATCH"
    assert client.get(id_) == before


@each_write
def test_a_write_with_a_token_where_none_was_chosen_is_refused(
    client: Client, write: Write
) -> None:
    id_ = client.started()

    with refused() as refusal:
        write(client, id_, lease_token=TOKEN)

    assert refusal.code == StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("write", [complete, fail])
def test_the_wrong_token_is_refused_even_with_the_same_result(client: Client, write: Write) -> None:
    id_ = client.started(lease_token=TOKEN)
    write(client, id_, lease_token=TOKEN)

    with refused() as refusal:
        write(client, id_, lease_token=OTHER_TOKEN)

    assert refusal.code == StatusCode.PERMISSION_DENIED


def end_by_complete(client: Client, id_: str) -> Status:
    client.complete(id_, lease_token=TOKEN, response=packed(ScanResult(id="another")))
    return Status(code=Code.OK)


def end_by_fail(client: Client, id_: str) -> Status:
    client.fail(id_, Status(code=Code.INTERNAL, message="broke"), lease_token=TOKEN)
    return Status(code=Code.INTERNAL, message="broke")


def end_by_cancel(client: Client, id_: str) -> Status:
    message = client.cancel(id_).error.message
    return Status(code=Code.CANCELLED, message=message)


@each_write
@pytest.mark.parametrize("end", [end_by_complete, end_by_fail, end_by_cancel])
def test_a_write_on_what_is_done_otherwise_is_refused_with_how_it_ended(
    client: Client, write: Write, end: Callable[[Client, str], Status]
) -> None:
    id_ = client.started(lease_token=TOKEN)
    terminal = end(client, id_)
    before = client.get(id_)

    with refused() as refusal:
        write(client, id_, lease_token=TOKEN)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_DONE"
    assert refusal.message == "The operation is done already, and stays as it is."
    assert refusal.one(ErrorInfo).metadata == {"operation_id": id_}
    assert refusal.one(Status) == terminal
    assert client.get(id_) == before


def test_a_huge_terminal_error_still_fits_into_the_refusal(client: Client) -> None:
    id_ = client.started()
    details = [packed(ErrorInfo(reason="R" * 5000)) for _ in range(100)]
    client.fail(id_, Status(code=Code.INTERNAL, message="🚀" * 100_000, details=details))

    with refused() as refusal:
        client.complete(id_)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.one(Status).code == Code.INTERNAL
    assert refusal.one(Status).message.startswith("🚀🚀🚀")
    assert refusal.header_bytes < 8_000


@each_write
def test_a_write_on_an_unknown_operation_is_not_found(client: Client, write: Write) -> None:
    with refused() as refusal:
        write(client, "opsnowhere", lease_token=TOKEN)

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == "Operation opsnowhere not found"


def test_the_token_is_never_shown(client: Client) -> None:
    started = client.start(lease_token=TOKEN, lease=LEASE)
    renewed = client.renew(started.operation.id, lease_token=TOKEN)

    assert TOKEN not in f"{started}{renewed}{client.get(started.operation.id)}"


@pytest.mark.parametrize("policy", [CancelPolicy.CANCEL_POLICY_UNSPECIFIED, CancelPolicy.IMMEDIATE])
def test_a_policy_that_is_not_chosen_means_immediate(client: Client, policy: CancelPolicy) -> None:
    assert client.cancel(client.started(cancel_policy=policy)).done
