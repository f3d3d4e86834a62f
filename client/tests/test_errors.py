"""The errors that a service raises and catches."""

from __future__ import annotations

import pickle

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from opservice_client import CallFailed, Failed, OperationCancelled, ProducerError, StartFailed

REFUSAL = AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata(), "nobody is there")


@pytest.mark.parametrize(
    "error",
    [
        Failed(StatusCode.NOT_FOUND, "no image i1", [StringValue(value="i1")]),
        OperationCancelled("operation ops1 is cancelled"),
        CallFailed(REFUSAL, "localhost:1"),
        StartFailed(REFUSAL, "localhost:1"),
    ],
)
def test_an_error_that_was_raised_in_another_process_is_the_same_here(error: ProducerError) -> None:
    came = pickle.loads(pickle.dumps(error))  # as a pool of processes does

    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)
