"""docs/access.md as it says: tokens of `opservice token` over TLS, with the clients that people have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api_core import exceptions, operation, operations_v1
from google.protobuf.wrappers_pb2 import StringValue
from yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandexcloud import SDK  # type: ignore[attr-defined] # it has no __all__

from opservice_client import Producer
from support.certificates import Authority
from support.server import PATIENCE, ServerProcess, clean_environment, run_opservice, serving
from support.tools import require_tool

# Of a package without types.
new_client: Callable[[grpc.Channel], Any] = operations_v1.OperationsClient
from_gapic: Callable[..., Any] = operation.from_gapic

# The SDK's own doing.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated class RetryInterceptor")

PARENT = "folders/b1g/clusters/c1"
GRANTS = {
    "registry": "producer:folders/*",
    "alice": "editor:folders/b1g/*",
    "viewer": "viewer:folders/b1g/*",
    "stranger": "admin:folders/b1gx/*",
}
GET = "yandex.cloud.operation.OperationService/Get"
CANCEL = "yandex.cloud.operation.OperationService/Cancel"


@dataclass(frozen=True)
class Site:
    """A server, what to trust, and a token for each of GRANTS."""

    server: ServerProcess
    authority: Authority
    tokens: dict[str, str]

    @property
    def pem(self) -> bytes:
        return self.authority.certificate.read_bytes()

    def producer(self) -> Producer:
        return Producer(
            self.server.address,
            credentials=grpc.ssl_channel_credentials(self.pem),
            token=self.tokens["registry"],
        )

    def started(self) -> str:
        with self.producer() as producer:
            return producer.start(parent=PARENT).operation.id

    def opservice(self, who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [*arguments, "--server", self.server.address, "--tls-ca"]
        return run_opservice(
            *line,
            str(self.authority.certificate),
            environment={"OPSERVICE_TOKEN": self.tokens[who]},
        )

    def grpcurl(
        self, token: str | None, method: str, operation_id: str
    ) -> subprocess.CompletedProcess[str]:
        program = require_tool(
            "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
        )
        header = [] if token is None else ["-H", f"authorization: Bearer {token}"]
        data = json.dumps({"operation_id": operation_id})
        trust = ["-cacert", str(self.authority.certificate)]
        return subprocess.run(
            [program, *trust, *header, "-d", data, self.server.address, method],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


@pytest.fixture(scope="module")
def site(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("access")
    entries, tokens = "", {}
    for subject, grant in GRANTS.items():
        made = run_opservice("token", "--subject", subject, "--grant", grant, "--expires-in", "1d")
        entries += made.stdout
        tokens[subject] = made.stderr.split()[-1]
    file = directory / "tokens.yaml"
    file.write_text(entries)
    pair = authority.issue("access")
    with serving(
        directory,
        f"sqlite:///{directory}/a.db",
        cold=True,  # a test looks at its command line
        listen="127.0.0.1:0",
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tokens=file,
    ) as server:
        yield Site(server, authority, tokens)


def test_the_yandex_sdk_sends_its_iam_token(site: Site) -> None:
    id_ = site.started()

    def operations_of(who: str) -> OperationServiceStub:
        sdk = SDK(
            iam_token=site.tokens[who], endpoint=site.server.address, root_certificates=site.pem
        )
        stub: OperationServiceStub = sdk.client(OperationServiceStub)
        return stub

    assert operations_of("viewer").Get(GetOperationRequest(operation_id=id_)).id == id_
    with pytest.raises(grpc.RpcError) as refusal:
        operations_of("viewer").Cancel(CancelOperationRequest(operation_id=id_))
    assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as refusal:
        operations_of("stranger").Get(GetOperationRequest(operation_id=id_))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert operations_of("alice").Cancel(CancelOperationRequest(operation_id=id_)).done


def test_google_clients_send_an_access_token(site: Site) -> None:
    id_ = site.started()

    def operations_of(token: str) -> Any:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(site.pem), grpc.access_token_call_credentials(token)
        )
        return new_client(grpc.secure_channel(site.server.address, credentials))

    alice, stranger = operations_of(site.tokens["alice"]), operations_of(site.tokens["stranger"])
    future = from_gapic(alice.get_operation(f"operations/{id_}"), alice, StringValue)
    assert [each.name for each in alice.list_operations(PARENT, "done = false")]
    assert [each.name for each in stranger.list_operations(PARENT, "")] == []
    with pytest.raises(exceptions.NotFound):
        stranger.cancel_operation(f"operations/{id_}")
    with pytest.raises(exceptions.Unauthenticated):
        operations_of("opservice_no-such-token").get_operation(f"operations/{id_}")
    assert future.cancel()
    with pytest.raises(exceptions.Cancelled):
        future.result(timeout=PATIENCE)


def test_grpcurl_sends_a_header_with_its_reflection_as_well(site: Site) -> None:
    id_ = site.started()

    assert json.loads(site.grpcurl(site.tokens["viewer"], GET, id_).stdout)["id"] == id_
    assert "Code: PermissionDenied" in site.grpcurl(site.tokens["viewer"], CANCEL, id_).stderr
    assert "Code: NotFound" in site.grpcurl(site.tokens["stranger"], GET, id_).stderr
    assert "No credentials" in site.grpcurl(None, GET, id_).stderr
    assert json.loads(site.grpcurl(site.tokens["alice"], CANCEL, id_).stdout)["done"] is True


def test_the_commands_send_the_token_of_the_environment(site: Site) -> None:
    id_ = site.started()

    assert id_ in site.opservice("viewer", "get", id_).stdout
    refused = site.opservice("viewer", "cancel", id_)
    assert (refused.returncode, "PERMISSION_DENIED" in refused.stderr) == (8, True)
    assert site.opservice("stranger", "get", id_).returncode == 6
    assert site.opservice("alice", "cancel", id_).returncode == 0


class Tokens(grpc.AuthMetadataPlugin):
    """Gives each call the next token; after the last one, that again."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = list(tokens)

    def __call__(
        self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        token = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        callback((("authorization", f"Bearer {token}"),), None)


def test_a_producer_may_get_a_new_token_for_each_call(site: Site) -> None:
    tokens = Tokens(site.tokens["registry"], site.tokens["stranger"])
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(site.pem), grpc.metadata_call_credentials(tokens)
    )
    with Producer(site.server.address, credentials=credentials) as producer:
        assert producer.start(parent=PARENT).operation.created_by == "registry"
        assert producer.start(parent="folders/b1gx/a").operation.created_by == "stranger"


def test_a_token_of_the_command_is_in_no_argument_and_no_log(site: Site) -> None:
    site.started()

    said = site.server.stderr + site.server.stdout
    assert [who for who, token in site.tokens.items() if token in said] == []
    command_line = subprocess.run(
        ["ps", "-o", "args=", "-p", str(site.server.pid)], capture_output=True, text=True
    ).stdout
    assert "-m opservice serve" in command_line
    assert [who for who, token in site.tokens.items() if token in command_line] == []


def test_a_wrong_grant_is_explained() -> None:
    refused = run_opservice("token", "--subject", "alice", "--grant", "editor")

    assert refused.returncode == 2
    assert "expected ROLE:PARENT" in refused.stderr


def test_a_password_on_the_command_line_is_refused() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "opservice", "serve", "--database", "postgresql://a:secret@h/d"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert refused.returncode == 2
    assert "OPSERVICE_DATABASE" in refused.stderr
    assert "secret" not in refused.stderr
