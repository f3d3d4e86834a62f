"""An nginx of the tests' own, between a client and a server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.server import eventually
from support.tools import require_tool, stable_port


class Nginx:
    def __init__(self, port: int, log: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self._log = log

    def calls(self, method: str, agent: str) -> int:
        """How many calls of the method have ended, in whatever way, of clients of this kind."""
        return self._log.read_text().count(f"/{method} {agent}/") if self._log.exists() else 0


@contextmanager
def nginx(directory: Path, server: str, *options: str) -> Iterator[Nginx]:
    """Before the server at this address, with these lines of configuration beside `grpc_pass`."""
    program = shutil.which("nginx", path="/usr/sbin") or require_tool(
        "nginx", "apt-get install nginx-light"
    )
    port, log = stable_port(), directory / "access.log"
    configuration = directory / "nginx.conf"
    lines = "\n".join(f"{option};" for option in options)
    configuration.write_text(f"""
        daemon off; master_process off; worker_processes 1; pid {directory}/pid;
        error_log {directory}/error.log;
        events {{ worker_connections 256; }}
        http {{
            log_format calls '$request_uri $http_user_agent $status';
            access_log {log} calls;
            client_body_temp_path {directory}/body;
            proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi;
            uwsgi_temp_path {directory}/uwsgi;
            scgi_temp_path {directory}/scgi;
            server {{
                listen 127.0.0.1:{port} http2;
                {lines}
                location / {{ grpc_pass grpc://{server}; }}
            }}
        }}
    """)
    process = subprocess.Popen([program, "-p", str(directory), "-c", str(configuration)])
    try:
        eventually(lambda: log.exists() or process.poll() is not None)
        assert process.poll() is None, (directory / "error.log").read_text()
        yield Nginx(port, log)
    finally:
        process.terminate()
        process.wait()
