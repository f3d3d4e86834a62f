"""The HTTP front: the TLS files that it uses."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from pathlib import Path

import pytest

from fronts.http.connections import serving, until
from opservice.main import http as module
from opservice.main.http import follow_tls
from opservice.runtime.tls import ReloadableTls, TlsFiles, ssl_context
from support.certificates import Authority, client_context


def issued(authority: Authority) -> TlsFiles:
    pair = authority.issue("localhost")
    return TlsFiles(pair.certificate.read_bytes(), pair.key.read_bytes())


async def test_new_files_that_cannot_be_used_for_want_of_open_files_are_used_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were checked when they were read, so nothing is wrong with them."""
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    authority = Authority(tmp_path)
    first, second = issued(authority), issued(authority)
    tls, replaced = ReloadableTls(first), asyncio.Event()
    tls.when_replaced = replaced.set
    make, refusals = os.memfd_create, iter([errno.EMFILE, errno.ENFILE])

    def make_or_refuse(name: str) -> int:
        refusal = next(refusals, None)
        if refusal is not None:
            raise OSError(refusal, os.strerror(refusal))
        return make(name)

    context = ssl_context(first)
    async with serving(tls=context) as served:
        monkeypatch.setattr(os, "memfd_create", make_or_refuse)
        following = asyncio.create_task(follow_tls(served.server, tls, replaced))
        tls.replace(second)
        await until(lambda: following.done() or served.server._listener.tls is not context)
        async with served.connect() as client:
            await client.writer.start_tls(client_context(authority), server_hostname="localhost")
            shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        following.cancel()
    assert shown == ssl.PEM_cert_to_DER_cert(second.certificate.decode())
