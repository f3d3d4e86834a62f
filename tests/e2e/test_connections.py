"""What a connection may do, and how many there may be."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import pytest

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from support import http2
from support.server import PATIENCE, ServerProcess, eventually, serving

HELLO = http2.PREFACE + http2.frame(http2.SETTINGS)
PING = http2.frame(http2.PING, payload=bytes(8))
LAST, AFTERWARDS = b"the last", b"and more"
GOAWAY = 7


@contextmanager
def connected(server: ServerProcess, opening: bytes = HELLO) -> Iterator[socket.socket]:
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(opening)
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that the server sends until it hangs up."""
    data = b""
    while chunk := connection.recv(65_536):
        data += chunk
    return data


def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, sqlite_url, max_connections=3) as server, ExitStack() as held:
        id_ = server.client.started()
        for _ in range(2):
            assert held.enter_context(connected(server)).recv(9)
        with connected(server) as beyond:
            assert received(beyond) == b""

        assert server.client.get(id_)
        held.close()
        eventually(lambda: _answers(server))


def _answers(server: ServerProcess) -> bool:
    with connected(server) as connection:
        return connection.recv(9) != b""


def test_the_server_may_open_as_many_files_as_the_system_lets_it(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, sqlite_url) as server:
        files, allowed = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)

    assert files == allowed


@pytest.mark.parametrize("opening", [b"", http2.PREFACE[:10], http2.PREFACE])
def test_a_connection_that_does_not_say_what_it_is_is_closed(
    sqlite_url: str, tmp_path: Path, opening: bytes
) -> None:
    with (
        serving(tmp_path, sqlite_url, handshake_timeout="500ms") as server,
        connected(server, opening) as connection,
    ):
        assert b"handshake timeout" in received(connection)


def test_who_pings_often_gets_all_pings_answered_and_stays(sqlite_url: str, tmp_path: Path) -> None:
    """By default gRPC sends such a client away, and takes seconds to do it when there are many pings."""
    pings = PING * 20_000 + http2.frame(http2.PING, payload=LAST)
    with serving(tmp_path, sqlite_url) as server, connected(server) as connection:
        sending = Thread(target=connection.sendall, args=(pings,))
        sending.start()
        with connection.makefile("rb") as answers:
            answered = 0
            while (frame := _read_frame(answers)) != (http2.PING, LAST):
                answered += frame[0] == http2.PING
            sending.join()
            assert answered == 20_000

            assert server.client.get(server.client.started())
            connection.sendall(http2.frame(http2.PING, payload=AFTERWARDS))
            while _read_frame(answers) != (http2.PING, AFTERWARDS):
                pass


def _read_frame(answers: BinaryIO) -> tuple[int, bytes]:
    """The kind and the payload of the next frame, which is no farewell."""
    head = answers.read(9)
    assert len(head) == 9, "the server hung up"
    payload = answers.read(int.from_bytes(head[:3], "big"))
    assert head[3] != GOAWAY, payload
    return head[3], payload


def test_a_client_that_has_more_calls_than_streams_gets_all_of_them_answered(
    sqlite_url: str, tmp_path: Path
) -> None:
    """By default gRPC counts streams that have ended, too, and refuses calls that a client may make."""
    with serving(tmp_path, sqlite_url, max_concurrent_streams=2) as server:
        id_ = server.client.started()
        get = GetOperationRequest(operation_id=id_)
        calls = [server.client.operations.Get.future(get) for _ in range(500)]

        assert {call.result(PATIENCE).id for call in calls} == {id_}
