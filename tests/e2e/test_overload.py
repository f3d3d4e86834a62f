"""More calls than the server takes on."""

from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from opservice._proto.opservice.v1.operation_record_service_pb2 import WaitOperationRecordRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest
from opservice.common.loggers import AUDIT_LOGGER
from support.client import Client, Refusal, refusal_from, refused
from support.fixtures import held_up_writes
from support.server import PATIENCE, eventually, serving


def refusal_of_a_get(client: Client, operation_id: str) -> Refusal | None:
    try:
        client.get(operation_id)
    except grpc.RpcError as error:
        return refusal_from(error)
    return None


def health(channel: grpc.Channel) -> int:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    status: int = check(health_pb2.HealthCheckRequest()).status
    return status


def test_calls_beyond_the_limit_are_refused_until_others_end_and_waits_do_not_count(
    database_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, database_url, max_calls=2) as server:
        client = server.client
        ids = [client.started() for _ in range(3)]
        wait = WaitOperationRecordRequest(operation_id=ids[2])
        waiting = [client.records.Wait.future(wait) for _ in range(5)]
        with held_up_writes(database_url):
            cancels = [
                client.operations.Cancel.future(CancelOperationRequest(operation_id=id_))
                for id_ in ids[:2]
            ]
            refusal = eventually(lambda: refusal_of_a_get(client, ids[2]))
            at_once = WaitOperationRecordRequest(operation_id=ids[2], timeout=Duration())
            assert not client.records.Wait(at_once).operation.done
            assert health(client.channel) == health_pb2.HealthCheckResponse.SERVING
            with refused() as of_start:
                client.start()

        assert refusal.code == StatusCode.RESOURCE_EXHAUSTED
        assert refusal.reason == of_start.reason == "SERVER_BUSY"
        assert refusal.one(RetryInfo).retry_delay.seconds >= 1
        assert all(cancel.result(PATIENCE).done for cancel in cancels)
        client.cancel(ids[2])
        assert all(call.result(PATIENCE).operation.done for call in waiting)
        (line, *_) = server.log(event="refusing calls")
        assert line["in_progress"] == 2
        assert "too many calls in progress" in line["reason"]
        assert line["refused"] == 1
        audited = server.log(logger=AUDIT_LOGGER, error="ServerBusy", code="RESOURCE_EXHAUSTED")
        assert [each["method"].rpartition("/")[2] for each in audited] == ["Get", "Start"]
