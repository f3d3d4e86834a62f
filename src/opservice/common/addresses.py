"""Addresses as settings have them: HOST:PORT, [IPV6]:PORT, unix:PATH."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

from opservice.domain.errors import StartupError

_EVERY_HOST = {"0.0.0.0", "::"}  # noqa: S104 - nothing is bound to it here
_MAX_SOCKET_PATH = 107  # bytes; the kernel's limit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. Of names, this is so for `localhost` alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def overlap(address: str, other: str) -> bool:
    """Whether two of HOST:PORT cannot both be listened on, as they are one, or one contains the other.

    Of names, only `localhost` is known.
    """
    (host, port), (other_host, other_port) = split_address(address), split_address(other)
    if port != other_port or port == 0:
        return False
    hosts = {_canonical(host), _canonical(other_host)}
    return (
        len(hosts) == 1
        or not hosts.isdisjoint(_EVERY_HOST)
        or ("localhost" in hosts and all(map(is_loopback, hosts)))
    )


def _canonical(host: str) -> str:
    """The one form of an address that may be written in several; of names the one in lower case."""
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return host.lower()


def socket_path(address: str) -> Path | None:
    """The path of unix:PATH, None for other addresses. Raises StartupError when the path is malformed.

    The address is that of --listen: no other setting takes a socket.
    """
    scheme, _, path = address.partition(":")
    if scheme != "unix":
        return None
    # gRPC reads it as a URI, where others have a meaning.
    if not re.fullmatch(r"(?!//)[\w./+@,=~-]+", path, re.ASCII):
        raise StartupError(
            f"--listen {address}: expected unix:PATH, of letters, digits and . / _ + @ , = ~ -"
        )
    if len(path) > _MAX_SOCKET_PATH:
        raise StartupError(
            f"--listen {address}: the path has more than {_MAX_SOCKET_PATH} characters"
        )
    return Path(path)


def cannot_listen(address: str, flag: str = "--listen") -> StartupError:
    """The error of a server that cannot bind the address that the flag gives."""
    return StartupError(
        f"cannot listen on {address}: the port is taken, or the address is not this machine's; {flag} takes"
        " another"
    )


def split_address(address: str, flag: str = "--listen") -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises StartupError, with the flag, if it is neither."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]/\s]+):([0-9]{1,5})", address)
    if match is None or int(match[2]) > 65_535:
        raise StartupError(f"{flag} {address}: expected HOST:PORT")
    return match[1], int(match[2])
