"""What a service imports to run its work as operations of opservice.

`Producer` is for services with threads, `opservice_client.aio.Producer` for asyncio; the forwarders
let a service answer OperationService.Get and Cancel at its own address.
"""

from opservice_client._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice_client.errors import (
    CallFailed,
    Failed,
    OperationCancelled,
    ProducerError,
    StartFailed,
)
from opservice_client.forwarding import forward_operations, forward_operations_aio
from opservice_client.payloads import encode
from opservice_client.requests import StartOptions, idempotency_key
from opservice_client.sync import Producer, Work

__all__ = [
    "CallFailed",
    "CancelPolicy",
    "Failed",
    "OperationCancelled",
    "Producer",
    "ProducerError",
    "Progress",
    "StartFailed",
    "StartOptions",
    "Work",
    "encode",
    "forward_operations",
    "forward_operations_aio",
    "idempotency_key",
]
