"""What the gRPC front serves beside the API: health and reflection, which know all of its services."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from opservice.fronts.grpc import health
from opservice.fronts.grpc.health import HealthService
from opservice.fronts.grpc.reflection import build_pool, reflection_methods
from opservice.methods import services
from opservice.methods.readiness import Readiness
from opservice.methods.registry import Method
from opservice.methods.serving import ServingState

KnownTypes: TypeAlias = DescriptorPool

_FILES = (*services.FILES, health.FILE)
_SERVICES = [service.full_name for file in _FILES for service in file.services_by_name.values()]


def known_types(others: Iterable[FileDescriptor], descriptor_sets: Iterable[Path]) -> KnownTypes:
    """What reflection tells of: the services, the public Google types, and what it is given here.

    Raises StartupError when a descriptor set cannot be used.
    """
    return build_pool((*_FILES, *others), descriptor_sets)


def own_methods(state: ServingState, readiness: Readiness, types: KnownTypes) -> tuple[Method, ...]:
    """The methods of health and of reflection."""
    return (
        *HealthService(state, readiness, _SERVICES).methods(),
        *reflection_methods(_SERVICES, types),
    )
