"""`opservice health`."""

from __future__ import annotations

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opservice.cli.connection import Connection, describe
from opservice.cli.exits import CommandFailed, Exit
from opservice.cli.target import server_options


@click.command("health")
@server_options(timeout="3s")
@click.option(
    "--readiness",
    is_flag=True,
    help="Ask whether it is ready: also its database has to work, within 2 s.",
)
def health_command(connection: Connection, *, readiness: bool) -> None:
    """Check whether the server is serving. The exit code is 0 if it is, otherwise 1.

    \b
    opservice health
    opservice health --readiness
    opservice health --server api.example:443 --tls
    """
    stub = health_pb2_grpc.HealthStub(connection.channel)
    check = stub.Check  # type: ignore[attr-defined] # its types lack the methods
    request = health_pb2.HealthCheckRequest(service="opservice.readiness" if readiness else "")
    try:
        answer = connection.call(check, request)
    except grpc.RpcError as error:
        # Whatever it is: those who check health know 0 and 1.
        raise CommandFailed(describe(connection.address, error), Exit.ERROR) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit(Exit.ERROR)
