"""Pages in a real browser: Chromium without a window, which runs what tests give to its pages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

from support.server import PATIENCE
from support.tools import require_tool

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it runs as root in CI
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--no-proxy-server",
)
_POLL_SECONDS = 1.0
_PAGE = b"""<!doctype html><meta charset="utf-8"><title>page</title><body><script>
const AsyncFunction = (async () => {}).constructor;
const run = async ({code, given}) => {
  try {
    return {value: await new AsyncFunction('given', code)(given) ?? null};
  } catch (error) {
    return {error: String(error)};
  }
};
(async () => {
  for (;;) {
    const answer = await fetch('/next');
    if (answer.status !== 200) continue;
    await fetch('/told', {method: 'POST', body: JSON.stringify(await run(await answer.json()))});
  }
})();
</script>"""


class ScriptFailed(Exception):
    """What a script has thrown, in its words."""


class Page:
    """A page at an origin of its own, which runs scripts once a browser shows it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._given: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._told: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.given, self._server.told = self._given, self._told
        self.origin = f"http://{host}:{self._server.server_address[1]}"

    def run(self, code: str, **given: Any) -> Any:
        """Runs the body of an async function, and returns what it returns. Raises ScriptFailed."""
        self._given.put({"code": code, "given": given})
        told = self._told.get(timeout=PATIENCE)
        if "error" in told:
            raise ScriptFailed(told["error"])
        return told["value"]

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    given: SimpleQueue[dict[str, Any]]
    told: SimpleQueue[dict[str, Any]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, _PAGE)
        elif self.path == "/next":
            try:
                self._answer(200, json.dumps(self.server.given.get(timeout=_POLL_SECONDS)).encode())
            except Empty:
                self._answer(204)
        else:
            self._answer(404)

    def do_POST(self) -> None:
        self.server.told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        with suppress(OSError):  # the browser has been closed
            self.send_response(status)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def chromium(directory: Path, page: Page) -> Iterator[None]:
    """Shows a page until the block ends."""
    program = require_tool("chromium", "apt-get install chromium")
    directory.mkdir()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={directory}", page.origin],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(directory)},
            start_new_session=True,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
