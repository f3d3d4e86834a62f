"""Requests that a browser sends for a page of another site, which may not use who the browser is.

A page may have a browser send nearly any request to any address, a server on the user's own machine included;
it only cannot read the answer. A client certificate goes with it, and where nobody is authenticated nothing
needs to. So such requests are refused, unless `--cors-origin` names the page's site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

ANY_ORIGIN = "*"

Header = Callable[[str], str | None]
"""Given a name in lower case it returns the value of a header."""


class Origins:
    """Whose pages may call. `allowed` has origins, such as `https://ops.example.com`, or ANY_ORIGIN.

    With `only_local_names` the server must be called by an address, `localhost`, or the host of an allowed
    origin. So a name that leads a browser to this machine, and belongs to somebody else, is of no use to
    them (DNS rebinding).
    """

    def __init__(self, allowed: Sequence[str], *, only_local_names: bool) -> None:
        self.allowed = tuple(allowed)
        self._only_local_names = only_local_names
        self._hosts = {urlsplit(origin).hostname for origin in allowed}

    def refuses_page(self, header: Header) -> bool:
        """Whether a request is one of a page that may not call."""
        origin = header("origin")
        site = header("sec-fetch-site")
        if origin is not None and (origin in self.allowed or ANY_ORIGIN in self.allowed):
            return False
        if site is not None:  # pages cannot set it
            return site not in {"same-origin", "none"}
        if origin is None:
            return False
        place = _parsed(origin)
        return place is None or not place.netloc or place.netloc != header("host")

    def refuses_host(self, header: Header) -> bool:
        """Whether a request was sent to a name under which this server may not be called."""
        if not self._only_local_names:
            return False
        place = _parsed(f"//{header('host') or ''}")
        host = None if place is None else place.hostname
        return not (host == "localhost" or host in self._hosts or _is_address(host))


def _parsed(url: str) -> SplitResult | None:
    """None for what is no URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_address(host: str | None) -> bool:
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True
