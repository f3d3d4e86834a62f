"""Clients that write as fast as they are answered, and remember what was acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread

import grpc
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.client import TOKEN, Client, Refusal, packed, refusal_from

RESPONSE = packed(ErrorInfo(reason="COMPLETED"))
ERROR = Status(code=Code.DATA_LOSS, message="failed by the load")

_ENDS: list[Callable[[Client, str], Operation]] = [
    lambda client, id_: client.complete(id_, lease_token=TOKEN, response=RESPONSE),
    lambda client, id_: client.fail(id_, ERROR, lease_token=TOKEN),
    lambda client, id_: client.cancel(id_),
]


@dataclass
class Load:
    """`threads` clients on connections of their own, each until it is first refused."""

    connect: Callable[[], Client]
    threads: int = 8
    acknowledged: dict[str, Operation] = field(default_factory=dict)
    """Every operation, as its last acknowledged write answered."""
    unknown: set[str] = field(default_factory=set)
    """Operations whose last write was not answered: it may have happened."""
    refusals: list[Refusal] = field(default_factory=list)

    def start(self) -> None:
        self._running = [Thread(target=self._write) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()

    def join(self) -> None:
        for thread in self._running:
            thread.join()

    def count_lost(self, client: Client) -> int:
        """How many operations are not as acknowledged. Fails where a state is impossible."""
        lost = 0
        for id_, expected in self.acknowledged.items():
            operation = client.get(id_)
            if id_ not in self.unknown:
                lost += operation != expected
            elif operation != expected:
                # The write that was not answered happened, whole.
                assert not expected.done
                assert operation.done
                assert operation.HasField("response") or operation.HasField("error")
        return lost

    def _write(self) -> None:
        client, id_ = self.connect(), ""
        try:
            while True:
                id_ = ""
                operation = client.start(lease_token=TOKEN, description="under load").operation
                id_ = operation.id
                self.acknowledged[id_] = operation
                if random.random() < 0.8:
                    self.acknowledged[id_] = random.choice(_ENDS)(client, id_)
        except grpc.RpcError as error:
            self.unknown.add(id_)
            self.refusals.append(refusal_from(error))
