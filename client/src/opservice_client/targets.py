"""What a target, as gRPC takes it, says of where it leads.

https://github.com/grpc/grpc/blob/master/doc/naming.md
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

_SCHEME = re.compile(r"(dns|ipv4|ipv6):(///)?", re.IGNORECASE)


def is_loopback(target: str) -> bool:
    """Whether it leads to this machine alone, such as localhost:50051 or ipv4:127.0.0.1:50051.

    False for what a DNS server of its own is asked for (dns://SERVER/HOST:PORT).
    """
    if target.startswith("unix:"):
        return True
    scheme = _SCHEME.match(target)
    addresses = target[scheme.end() if scheme else 0 :].split(",")
    return all(_is_loopback_host(_host(address)) for address in addresses)


def _host(address: str) -> str:
    """Of HOST:PORT, [IPV6]:PORT, or either without the port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback_host(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
