"""A port that several processes listen on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from opservice.common.addresses import cannot_listen, split_address


@contextmanager
def reserved_port(listen: str, flag: str = "--listen") -> Iterator[str]:
    """Keeps the port for processes of this user. Yields the address with the port that it got.

    The sockets only hold the port, also while no worker lives: as they do not listen, the kernel gives them
    no connection. Raises StartupError when the port is taken, also by a server that would share it.
    """
    host, port = split_address(listen)
    with ExitStack() as held:
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM
            ):
                if port:
                    _bound(family, (address[0], port, *address[2:]), share=False).close()
                holder = _bound(family, (address[0], port, *address[2:]), share=True)
                held.enter_context(holder)
                port = holder.getsockname()[1]
        except OSError as error:
            raise cannot_listen(listen, flag) from error
        yield f"{host}:{port}"


@contextmanager
def listening_sockets(
    listen: str, flag: str, *, share: bool
) -> Iterator[tuple[list[socket.socket], str]]:
    """Sockets on which a server may take connections, and the address with the port that it got.

    `flag` is the setting that the address is from.

    With `share` other processes of this user may listen on the same port. Raises StartupError when the port
    is taken, or the address is not this machine's.
    """
    host, port = split_address(listen)
    with ExitStack() as held:
        sockets: list[socket.socket] = []
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                made = _bound(family, (address[0], port, *address[2:]), share=share)
                sockets.append(held.enter_context(made))
                port = made.getsockname()[1]
        except OSError as error:
            raise cannot_listen(listen, flag) from error
        yield sockets, f"{host}:{port}"


def _bound(family: int, address: tuple[object, ...], *, share: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former server
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as gRPC has it
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
