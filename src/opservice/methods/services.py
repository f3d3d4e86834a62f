"""The services of the API, whatever front serves them: the files that define them, and their methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.longrunning import operations_proto_pb2
from google.protobuf.descriptor import FileDescriptor

from opservice._proto.opservice.v1 import operation_record_service_pb2, producer_service_pb2
from opservice._proto.yandex.cloud.endpoint import api_endpoint_service_pb2
from opservice._proto.yandex.cloud.operation import operation_service_pb2
from opservice.methods.endpoints import ApiEndpointService
from opservice.methods.guard import GuardedStore
from opservice.methods.longrunning import LongrunningService
from opservice.methods.operations import OperationService
from opservice.methods.producer import ProducerService
from opservice.methods.records import OperationRecordService
from opservice.methods.registry import Method
from opservice.methods.validation import Limits

FILES: Sequence[FileDescriptor] = (
    operation_service_pb2.DESCRIPTOR,
    producer_service_pb2.DESCRIPTOR,
    operation_record_service_pb2.DESCRIPTOR,
    operations_proto_pb2.DESCRIPTOR,
    api_endpoint_service_pb2.DESCRIPTOR,
)


def api_methods(
    store: GuardedStore,
    limits: Limits,
    *,
    max_wait: int,
    watch_repeat: int,
    resume_window: int,
    hide_error: bool,
    endpoints: Mapping[str, str],
) -> tuple[Method, ...]:
    """Every method of the API over this store.

    `max_wait`, `watch_repeat` and `resume_window` are microseconds. With `hide_error` an operation that is
    being cancelled shows no error until it is done. `endpoints` has the addresses that SDKs are told, by
    their ids.
    """
    return (
        *OperationService(store, max_wait=max_wait, hide_error=hide_error).methods(),
        *ProducerService(store, limits, hide_error=hide_error).methods(),
        *OperationRecordService(
            store,
            max_wait=max_wait,
            watch_repeat=watch_repeat,
            resume_window=resume_window,
            hide_error=hide_error,
        ).methods(),
        *LongrunningService(store, max_wait).methods(),
        *ApiEndpointService(endpoints).methods(),
    )
