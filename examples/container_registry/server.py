"""The server's process: reads the command line, connects to opservice, serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from datetime import timedelta
from pathlib import Path

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from yandex.cloud.containerregistry.v1 import image_service_pb2 as image_pb
from yandex.cloud.containerregistry.v1 import image_service_pb2_grpc as image_grpc
from yandex.cloud.containerregistry.v1 import registry_service_pb2 as registry_pb
from yandex.cloud.containerregistry.v1 import registry_service_pb2_grpc as registry_grpc
from yandex.cloud.containerregistry.v1 import scanner_service_pb2 as scanner_pb
from yandex.cloud.containerregistry.v1 import scanner_service_pb2_grpc as scanner_grpc
from yandex.cloud.operation import operation_service_pb2 as operation_pb

from opservice_client import forward_operations_aio
from opservice_client.aio import Producer

from .services import Api, ImageService, RegistryService, ScannerService, Store


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM; then calls and work in progress get `--drain` seconds each."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ca = options.opservice_ca
    credentials = grpc.ssl_channel_credentials(ca.read_bytes()) if ca else None
    producer = Producer(options.opservice, credentials=credentials)
    channel = (
        grpc.aio.secure_channel(options.opservice, credentials)
        if credentials
        else grpc.aio.insecure_channel(options.opservice)
    )
    # Yandex Go clients ping every 30 s, also when idle; by default they would be sent away for it.
    pings = [
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *pings])
    api = Api(producer, Store(), timedelta(seconds=options.lease), options.pace)
    # The SDK's types call every method abstract, also those that may be left to answer UNIMPLEMENTED.
    registry_grpc.add_RegistryServiceServicer_to_server(RegistryService(api), server)  # type: ignore[abstract]
    image_grpc.add_ImageServiceServicer_to_server(ImageService(api), server)  # type: ignore[abstract]
    scanner_grpc.add_ScannerServiceServicer_to_server(ScannerService(api), server)  # type: ignore[abstract]
    forward_operations_aio(server, channel)  # Yandex Go clients poll operations here
    probes = await _add_health_and_reflection(server)
    if options.tls_cert:
        pair = options.tls_key.read_bytes(), options.tls_cert.read_bytes()
        port = server.add_secure_port(options.listen, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(options.listen)
    await server.start()
    print(f"container-registry serving on {options.listen.rpartition(':')[0]}:{port}", flush=True)
    await stop.wait()
    await probes.enter_graceful_shutdown()  # NOT_SERVING: no new calls come here
    await server.stop(options.drain)
    await producer.close(timedelta(seconds=options.drain))  # what is left fails with ABORTED
    await channel.close()


async def _add_health_and_reflection(server: grpc.aio.Server) -> health.aio.HealthServicer:
    """For load balancers and grpcurl. Reflection is v1alpha, which clients fall back to: grpcio has no v1."""
    services = [
        service.full_name
        for file in (
            registry_pb.DESCRIPTOR,
            image_pb.DESCRIPTOR,
            scanner_pb.DESCRIPTOR,
            operation_pb.DESCRIPTOR,
        )
        for service in file.services_by_name.values()
    ]
    servicer = health.aio.HealthServicer()
    for name in ("", *services):
        await servicer.set(name, HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        [*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    return servicer


def main() -> None:
    parser = argparse.ArgumentParser(description="A small Container Registry API.")
    parser.add_argument("--listen", default="127.0.0.1:50052", help="HOST:PORT; port 0 picks one")
    parser.add_argument("--opservice", default="127.0.0.1:50051", help="HOST:PORT of opservice")
    parser.add_argument("--opservice-ca", type=Path, help="PEM; reaches opservice over TLS")
    parser.add_argument("--tls-cert", type=Path, help="PEM; serves TLS, and needs the key")
    parser.add_argument("--tls-key", type=Path, help="PEM")
    parser.add_argument("--lease", type=float, default=15, help="seconds of silence to be given up")
    parser.add_argument("--pace", type=float, default=0.5, help="seconds that a step of work takes")
    parser.add_argument(
        "--drain", type=float, default=10, help="seconds to end work in when stopped"
    )
    options = parser.parse_args()
    if bool(options.tls_cert) != bool(options.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    logging.basicConfig(level=logging.INFO)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
