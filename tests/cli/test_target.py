"""Which server, and as whom: TLS, client certificates, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from cli.conftest import Run
from support.certificates import Authority, Pair
from support.server import ServerProcess, serving


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def pair(authority: Authority) -> Pair:
    return authority.issue()


@pytest.fixture(scope="session")
def tls_server(
    authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """It demands client certificates."""
    directory = tmp_path_factory.mktemp("tls")
    settings: dict[str, Any] = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": authority.certificate,
    }
    with serving(directory, f"sqlite:///{directory}/a.db", **settings) as server:
        yield server


class Recorder(grpc.ServerInterceptor):
    """The `authorization` of each call that a server got."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        self.seen.append(dict(details.invocation_metadata).get("authorization"))
        return continuation(details)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def recorded(recorder: Recorder, pair: Pair) -> Iterator[dict[str, str]]:
    """Addresses of a server that does nothing but be healthy, by `plaintext` and `tls`."""
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[recorder])
    servicer = HealthServicer()
    servicer.set("", HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    )
    ports = {
        "plaintext": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", credentials),
    }
    server.start()
    yield {kind: f"127.0.0.1:{port}" for kind, port in ports.items()}
    server.stop(None).wait()


def test_operations_are_reached_over_mutual_tls(
    run: Run, tls_server: ServerProcess, authority: Authority
) -> None:
    ours = authority.issue("client")
    line = ["start", "-q", "--server", tls_server.address, "--tls-ca", str(authority.certificate)]
    identity = ["--tls-cert", str(ours.certificate), "--tls-key", str(ours.key)]

    assert run(*line, *identity).exit_code == 0
    assert run(*line).exit_code == 7
    by_environment = run(
        *line,
        OPSERVICE_TLS_CLIENT_CERT=str(ours.certificate),
        OPSERVICE_TLS_CLIENT_KEY=str(ours.key),
    )
    assert by_environment.exit_code == 0


def test_a_server_that_is_not_trusted_is_not_talked_to(
    run: Run, recorded: dict[str, str], recorder: Recorder, tmp_path: Path
) -> None:
    stranger = str(Authority(tmp_path, "stranger").certificate)

    for trust in (["--tls"], ["--tls-ca", stranger]):
        assert run("health", "--server", recorded["tls"], *trust, OPSERVICE_TOKEN="t").exit_code
    assert recorder.seen == []


def test_the_name_in_the_certificate_may_be_another(
    run: Run, recorded: dict[str, str], authority: Authority
) -> None:
    line = ["health", "--server", recorded["tls"], "--tls-ca", str(authority.certificate)]

    assert run(*line, "--tls-server-name", "localhost").exit_code == 0
    assert run(*line, "--tls-server-name", "elsewhere").exit_code == 1


def test_the_token_goes_with_the_call(
    run: Run, recorded: dict[str, str], recorder: Recorder, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    tls = ["health", "--server", recorded["tls"], "--tls-ca", str(authority.certificate)]
    plaintext = ["health", "--server", recorded["plaintext"]]

    for line in (tls, plaintext):
        run(*line)
        run(*line, OPSERVICE_TOKEN="from-environment")
        run(*line, "--token-file", str(file), OPSERVICE_TOKEN="from-environment")

    assert recorder.seen == [None, "Bearer from-environment", "Bearer from-file"] * 2


def test_every_call_of_a_command_has_the_token(
    run: Run, recorded: dict[str, str], recorder: Recorder
) -> None:
    """Those of wait and watch as well, which are made elsewhere."""
    commands = [["get", "a"], ["list"], ["cancel", "a"], ["delete", "a"], ["start"],
                ["complete", "a"], ["fail", "a", "--code", "INTERNAL"], ["wait", "a"],
                ["watch", "a"]]  # fmt: skip

    for command in commands:
        result = run(*command, "--server", recorded["plaintext"], OPSERVICE_TOKEN="t")
        assert "UNIMPLEMENTED" in result.stderr  # it is no opservice

    assert recorder.seen == ["Bearer t"] * len(commands)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:50051", "api.example:443", "localhost.example:1", "dns://10.0.0.1/localhost:1"],
)
def test_a_token_is_not_sent_elsewhere_in_plaintext(run: Run, address: str) -> None:
    result = run("get", "any", "--server", address, OPSERVICE_TOKEN="secret")

    assert result.exit_code == 2
    assert f"a token is not sent to {address} in plaintext" in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    "content", ["", "two\nlines", "gr\u00fcn"], ids=["empty", "lines", "letters"]
)
def test_a_file_without_a_token_is_wrong_usage(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)

    result = run("get", "any", "--token-file", str(tmp_path / "token"))

    assert result.exit_code == 2
    assert "holds no token" in result.stderr


def test_tls_files_that_do_not_work_are_wrong_usage(
    run: Run, pair: Pair, authority: Authority, tmp_path: Path
) -> None:
    no_pem = tmp_path / "some"
    no_pem.write_text("not one")
    locked = authority.issue("locked", password=b"secret")

    for files in (
        ["--tls-ca", no_pem],
        ["--tls-cert", pair.certificate],
        ["--tls-cert", pair.certificate, "--tls-key", locked.key],
        ["--tls-cert", pair.certificate, "--tls-key", authority.issue("other").key],
    ):
        result = run("get", "any", *map(str, files))
        assert result.exit_code == 2, files
        assert "Error: " in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:50080", "HTTPS://ops.example.com"])
def test_the_url_of_a_server_is_refused_with_what_is_expected(run: Run, url: str) -> None:
    result = run("get", "any", "--server", url)

    assert result.exit_code == 2
    assert f"'--server' (env var: 'OPSERVICE_SERVER'): {url}: expected HOST:PORT" in result.stderr
