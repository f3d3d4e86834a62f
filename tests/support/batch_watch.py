"""A BatchWatch as its client sees it, and what moves the operations that it follows."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread
from typing import Any

from grpc import RpcError

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord, Progress
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    DeleteOperationRecordRequest,
    GetOperationRecordRequest,
    OperationRecordEvent,
)
from support.client import Client
from support.server import PATIENCE

CAUGHT_UP = "caught up"


class Stream:
    """A BatchWatch, and what it has told. `known` is what its client knows: revisions by id."""

    def __init__(self, client: Client, **fields: Any) -> None:
        self.call = client.records.BatchWatch(BatchWatchOperationRecordsRequest(**fields))
        self.known: dict[str, int] = {}
        self.token = ""
        self._arrived: SimpleQueue[OperationRecordEvent | RpcError | None] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self.call:
                self._arrived.put(event)
            self._arrived.put(None)
        except RpcError as error:
            self._arrived.put(error)

    def next(self) -> OperationRecord | str | None:
        """A record, the id of what was removed, CAUGHT_UP, or None at the end."""
        event = self._arrived.get(timeout=PATIENCE)
        if isinstance(event, RpcError):
            raise event
        if event is None:
            return None
        self.token = event.resume_token or self.token
        match event.WhichOneof("event"):
            case "record":
                id_ = event.record.operation.id
                assert event.record.revision >= self.known.get(id_, 0), "a revision went back"
                self.known[id_] = event.record.revision
                return event.record
            case "removed_id":
                self.known.pop(event.removed_id, None)
                return event.removed_id
            case _:
                return CAUGHT_UP

    def first(self) -> list[OperationRecord | str]:
        """What there is at first."""
        return [*iter(self._next_of_first, CAUGHT_UP)]

    def _next_of_first(self) -> OperationRecord | str:
        told = self.next()
        assert told is not None
        return told

    def record(self) -> OperationRecord:
        told = self.next()
        assert isinstance(told, OperationRecord), told
        return told

    def until(self, id_: str, revision: int) -> OperationRecord:
        """Passes over what comes before the record in this revision."""
        while not isinstance(told := self.next(), OperationRecord) or (
            (told.operation.id, told.revision) != (id_, revision)
        ):
            assert told is not None
        return told

    def cut(self) -> str:
        """Breaks off. The token to continue with."""
        self.call.cancel()
        return self.token


def ids_of(told: list[OperationRecord | str]) -> list[str]:
    return [each if isinstance(each, str) else each.operation.id for each in told]


def get(client: Client, operation_id: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=operation_id))


def delete(client: Client, operation_id: str) -> None:
    client.records.Delete(DeleteOperationRecordRequest(operation_id=operation_id))


def renew(client: Client, operation_id: str, done: int = 1) -> None:
    client.renew(operation_id, progress=Progress(done=done))
