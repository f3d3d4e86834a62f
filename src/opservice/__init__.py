"""opservice: a durable long-running-operations server over gRPC."""

from importlib.metadata import version

__version__ = version("opservice")
