"""opservice: a durable long-running-operations server over gRPC."""

__version__: str


def __getattr__(name: str) -> str:
    # Importing this package must import nothing else: `__main__` has to be first.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("opservice")
