"""A port that several processes listen on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from opservice.common.addresses import cannot_listen, split_address

Address: TypeAlias = tuple[Any, ...]
"""As sockets have it: the host, the port, and more for IPv6."""


@contextmanager
def reserved_port(listen: str, flag: str = "--listen") -> Iterator[str]:
    """Keeps the port for processes of this user. Yields the address with the port that it got.

    The sockets only hold the port, also while no worker lives: as they do not listen, the kernel gives them
    no connection. Raises StartupError when the port is taken, also by a server that would share it.
    """
    host, port = split_address(listen)
    with ExitStack() as held:
        try:
            for family, address in _addresses(host):
                if port:
                    _bound(family, address, port, share=False).close()
                holder = held.enter_context(_bound(family, address, port, share=True))
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
            for family, address in _addresses(host):
                made = held.enter_context(_bound(family, address, port, share=share))
                if not share:
                    made.listen()  # two sockets may be bound to one port until one of them listens
                sockets.append(made)
                port = made.getsockname()[1]
        except OSError as error:
            raise cannot_listen(listen, flag) from error
        yield sockets, f"{host}:{port}"


def _addresses(host: str) -> Sequence[tuple[int, Address]]:
    """The addresses of a host, each once, with its family; those that this machine has, if it has any.

    A name such as `localhost` may be in /etc/hosts twice, or for IPv6 on a machine without it. The port of
    each address is 0.
    """
    found = socket.getaddrinfo(
        host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    every = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    return [each for each in every if _is_here(*each)] or every


def _is_here(family: int, address: Address) -> bool:
    try:
        _bound(family, address, 0, share=False).close()
    except OSError as error:
        return error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return True


def _bound(family: int, address: Address, port: int, *, share: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former server
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as gRPC has it
        made.bind((address[0], port, *address[2:]))
    except OSError:
        made.close()
        raise
    return made
