"""Fields are counted before they are decoded."""

from __future__ import annotations

from contextlib import suppress

from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from opservice._proto.opservice.v1.producer_service_pb2 import FailRequest
from opservice.methods.wire import has_more_fields

FAIL = FailRequest.DESCRIPTOR


def fail(details: int) -> bytes:
    """Three fields, and three for each detail."""
    error = Status(code=13, details=[AnyPb(type_url="a/b", value=b"\x08" * 9_000)] * details)
    return FailRequest(operation_id="id", error=error).SerializeToString()


def test_the_fields_of_messages_within_are_counted_but_not_what_payloads_hold() -> None:
    request = fail(100)

    assert not has_more_fields(request, FAIL, 303)
    assert has_more_fields(request, FAIL, 302)


def test_unknown_fields_are_counted_wherever_they_stand() -> None:
    of_group = b"\x7b" + b"\x12\x01\xff" + b"\x7c"  # within: the number of a message, but none
    for field in (b"\x78\x01", b"\x79" + bytes(8), b"\x7a\x00", b"\x7d" + bytes(4), b"\x7b\x7c"):
        assert has_more_fields(of_group + field * 1_001, FAIL, 1_000)
        assert has_more_fields(fail(1) + field * 1_001, FAIL, 1_000)
    within = FailRequest(error=Status.FromString(b"\x7a\x00" * 1_001)).SerializeToString()
    assert has_more_fields(within, FAIL, 1_000)


@given(st.binary(max_size=300))
def test_any_bytes_are_counted_to_an_end(data: bytes) -> None:
    assert not has_more_fields(data, FAIL, len(data))


def test_a_number_without_end_is_looked_at_no_further_than_a_decoder_does() -> None:
    assert not has_more_fields(b"\x80" * 4_000_000, FAIL, 1)


def test_a_size_is_the_number_that_the_decoder_takes_it_for() -> None:
    """In ten bytes, of which the last has more than the 64th bit."""
    details = b"\x1a\x00" * 50
    for last in range(128):
        size = bytes([0x80 | len(details), *[0x80] * 8, last])
        request = b"\x1a" + size + details
        with suppress(DecodeError):
            taken = len(FailRequest.FromString(request).error.details)
            assert has_more_fields(request, FAIL, taken)
