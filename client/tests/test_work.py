"""What a work's operation comes to, whatever the work does."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.demo.v1.container_registry_pb2 import ScanMetadata, ScanResult
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
)
from opservice_client import Failed, Progress
from support.client import unpacked
from support.producers import Kind, Steps, WorkLike, raising, returning
from support.server import ServerProcess, eventually

from .conftest import ended

RESULT = ScanResult(id="s1", image_id="i1")


def test_start_answers_with_a_running_operation_that_the_server_has(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start(
        description="Scan", metadata=ScanMetadata(image_id="i1"), created_by="ivan"
    )

    operation = server.client.get(work.id)
    assert work.owned
    assert not operation.done
    assert operation == work.operation
    assert unpacked(operation.metadata, ScanMetadata).image_id == "i1"
    assert operation.created_by == "ivan"


def test_what_the_work_returns_becomes_the_response(producer: Kind, server: ServerProcess) -> None:
    work = producer.start()
    producer.run(work, returning(RESULT))

    assert unpacked(ended(server, work.id).response, ScanResult) == RESULT


def test_nothing_returned_becomes_empty(producer: Kind, server: ServerProcess) -> None:
    work = producer.start()
    producer.run(work, returning(None))

    assert ended(server, work.id).response.Is(Empty.DESCRIPTOR)


def test_failed_becomes_its_code_message_and_details(producer: Kind, server: ServerProcess) -> None:
    work = producer.start()
    detail = ErrorInfo(reason="NO_SUCH_IMAGE", domain="registry")
    producer.run(work, raising(Failed(StatusCode.NOT_FOUND, "no image i1", [detail])))

    error = ended(server, work.id).error
    assert (error.code, error.message) == (Code.NOT_FOUND, "no image i1")
    assert unpacked(error.details[0], ErrorInfo) == detail


def test_any_other_exception_becomes_internal_without_its_text(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start()
    producer.run(work, raising(ValueError("password=hunter2")))

    error = ended(server, work.id).error
    assert error.code == Code.INTERNAL
    assert "hunter2" not in str(error)


def test_any_other_exception_is_logged_with_its_traceback(
    producer: Kind, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    work = producer.start()
    producer.run(work, raising(ValueError("password=hunter2")))
    ended(server, work.id)

    (logged,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert work.id in logged.getMessage()
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], ValueError)


def test_a_block_ends_the_operation_with_the_result_given_in_it(
    producer: Kind, server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        yield
        work.complete(RESULT)
        return None

    work = producer.start()
    producer.block(work, body)

    assert unpacked(server.client.get(work.id).response, ScanResult) == RESULT
    assert work.operation.done


def test_a_block_ends_the_operation_with_the_error_given_in_it(
    producer: Kind, server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        yield
        work.fail(Failed(StatusCode.NOT_FOUND, "no image i1"))
        return None

    work = producer.start()
    producer.block(work, body)

    assert server.client.get(work.id).error.message == "no image i1"


def test_leaving_a_block_without_a_result_fails_the_operation(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start()
    producer.block(work, returning(None))

    assert server.client.get(work.id).error.code == Code.INTERNAL


def test_an_exception_in_a_block_goes_on_after_the_operation_failed(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start()
    with pytest.raises(ValueError, match="hunter2"):
        producer.block(work, raising(ValueError("hunter2")))

    assert server.client.get(work.id).error.code == Code.INTERNAL


def test_failed_raised_in_a_block_is_done_with_when_the_block_is_left(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start()
    producer.block(work, raising(Failed(StatusCode.NOT_FOUND, "no image i1")))

    assert server.client.get(work.id).error.code == Code.NOT_FOUND


def test_a_result_that_cannot_be_stored_fails_the_operation_and_is_logged(
    producer: Kind, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    work = producer.start()
    producer.run(work, returning(object()))

    assert ended(server, work.id).error.code == Code.INTERNAL
    assert any("object cannot be stored" in str(each.exc_info) for each in caplog.records)


@pytest.mark.parametrize("size", [2 << 20, 5 << 20])  # the limits of a payload, and of a request
def test_a_result_that_is_too_large_fails_the_operation(
    producer: Kind, server: ServerProcess, size: int
) -> None:
    work = producer.start()
    producer.run(work, returning(ScanResult(id="x" * size)))

    assert ended(server, work.id).error.code == Code.INTERNAL


def test_reports_arrive_while_the_work_runs(producer: Kind, server: ServerProcess) -> None:
    def body(work: WorkLike) -> Steps:
        metadata = ScanMetadata(image_id="i1")
        for step in range(1, 4):
            metadata.progress.done = step
            work.report(Progress(done=step, total=10, unit="layers"), metadata)
        while not work.cancelled.is_set():
            yield
        return None

    work = producer.start(metadata=ScanMetadata(image_id="i1"))
    producer.run(work, body)

    request = GetOperationRecordRequest(operation_id=work.id)
    eventually(lambda: server.client.records.Get(request).progress.done == 3)
    metadata = unpacked(server.client.get(work.id).metadata, ScanMetadata)
    assert metadata.progress.done == 3
    server.client.cancel(work.id)


def test_reports_in_quick_succession_are_one_renewal(producer: Kind, server: ServerProcess) -> None:
    def body(work: WorkLike) -> Steps:
        for step in range(1, 101):
            work.report(Progress(done=step, total=100))
        while not work.cancelled.is_set():
            yield
        return None

    work = producer.start()
    producer.run(work, body)

    request = GetOperationRecordRequest(operation_id=work.id)
    eventually(lambda: server.client.records.Get(request).progress.done == 100)
    renewals = server.log(method="/opservice.v1.ProducerService/Renew", operation_id=work.id)
    assert len(renewals) <= 2
    server.client.cancel(work.id)


def test_the_metadata_reported_last_goes_with_the_result(
    producer: Kind, server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        work.report(metadata=ScanMetadata(image_id="i1"))
        yield
        work.report(metadata=ScanMetadata(image_id="i2"))
        return RESULT

    work = producer.start()
    producer.run(work, body)

    assert unpacked(ended(server, work.id).metadata, ScanMetadata).image_id == "i2"


def test_a_report_that_is_refused_does_not_harm_the_work(
    producer: Kind, server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        work.report(Progress(done=11, total=10))
        while not server.log(
            method="/opservice.v1.ProducerService/Renew",
            operation_id=work.id,
            code="INVALID_ARGUMENT",
        ):
            yield
        work.raise_if_cancelled()
        return RESULT

    work = producer.start()
    producer.run(work, body)

    assert ended(server, work.id).HasField("response")


def test_the_lease_is_renewed_while_the_work_runs_longer_than_it(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start(lease=timedelta(seconds=3))
    silent = producer.start(lease=timedelta(seconds=3))

    def body(work: WorkLike) -> Steps:
        # Started later, it lapses only after a lease of ours would have.
        while not server.client.get(silent.id).done:
            yield
        return RESULT

    producer.run(work, body)

    assert ended(server, work.id).HasField("response")
