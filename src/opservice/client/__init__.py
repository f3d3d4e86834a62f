"""What a service imports to run its work as operations of opservice.

`Producer` is for services with threads, `opservice.client.aio.Producer` for asyncio; the forwarders
let a service answer OperationService.Get and Cancel at its own address.
"""

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice.client.errors import Failed, OperationCancelled, ProducerError, StartFailed
from opservice.client.forwarding import forward_operations, forward_operations_aio
from opservice.client.requests import idempotency_key
from opservice.client.sync import Producer, Work

__all__ = [
    "CancelPolicy",
    "Failed",
    "OperationCancelled",
    "Producer",
    "ProducerError",
    "Progress",
    "StartFailed",
    "Work",
    "forward_operations",
    "forward_operations_aio",
    "idempotency_key",
]
