"""TLS from files, with and without client certificates."""

from pathlib import Path
from typing import Any

from click.testing import CliRunner
from grpc import StatusCode

from opservice.cli import cli
from support.certificates import Authority
from support.client import Client, open_channel, refused
from support.server import ServerProcess, serving


def test_the_server_serves_tls(tmp_path: Path, sqlite_url: str, authority: Authority) -> None:
    pair = authority.issue("tls")
    settings: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key}
    with serving(tmp_path, sqlite_url, **settings) as server:
        trusted = authority.certificate.read_bytes()
        assert Client(server.channel(root_certificates=trusted)).started()
        assert f"serving on {server.address} (TLS," in server.stdout

        with refused() as refusal:
            Client(server.channel()).started()
        assert refusal.code == StatusCode.UNAVAILABLE

        stranger = Authority(tmp_path, "stranger").certificate.read_bytes()
        with refused() as refusal:
            Client(server.channel(root_certificates=stranger)).started()
        assert refusal.code == StatusCode.UNAVAILABLE


def test_client_certificates_are_demanded_when_asked_for(
    tmp_path: Path, sqlite_url: str, authority: Authority
) -> None:
    pair, ours = authority.issue("mutual"), authority.issue("client")
    theirs = Authority(tmp_path, "stranger").issue("stranger-client")
    settings = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": authority.certificate,
    }
    trusted = authority.certificate.read_bytes()
    with serving(tmp_path, sqlite_url, **settings) as server:
        identity = ours.key.read_bytes(), ours.certificate.read_bytes()
        with open_channel(server.address, trusted, *identity) as channel:
            assert Client(channel).started()

        with open_channel(server.address, trusted) as channel, refused() as refusal:
            Client(channel).started()
        assert refusal.code == StatusCode.UNAVAILABLE

        identity = theirs.key.read_bytes(), theirs.certificate.read_bytes()
        with open_channel(server.address, trusted, *identity) as channel, refused() as refusal:
            Client(channel).started()
        assert refusal.code == StatusCode.UNAVAILABLE


def test_health_speaks_tls(tmp_path: Path, sqlite_url: str, authority: Authority) -> None:
    pair = authority.issue("health")
    settings: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key}
    with serving(tmp_path, sqlite_url, **settings) as server:
        plaintext = ["health", "--server", server.address]
        trusting = [*plaintext, "--tls-ca", str(authority.certificate)]

        assert CliRunner().invoke(cli, trusting).exit_code == 0
        assert CliRunner().invoke(cli, plaintext).exit_code == 1


def test_tls_files_that_do_not_work_are_a_refusal_to_start(
    tmp_path: Path, sqlite_url: str, authority: Authority
) -> None:
    mixed = {
        "tls_cert": authority.issue("one").certificate,
        "tls_key": authority.issue("another").key,
    }
    server = ServerProcess(tmp_path, sqlite_url, **mixed)

    assert server.expect_refusal() == 1
    assert "opservice: the TLS key does not belong to the certificate" in server.stderr
    assert "Traceback" not in server.stderr
    assert not (tmp_path / "operations.db").exists()
