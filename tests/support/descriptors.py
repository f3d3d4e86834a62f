"""A protobuf type that the server does not know, made in the test that needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_FILES = {
    "far/away/v1/color.proto": """
        syntax = "proto3";
        package far.away.v1;
        enum Color { COLOR_UNSPECIFIED = 0; GREEN = 1; }
    """,
    "far/away/v1/ship.proto": """
        syntax = "proto3";
        package far.away.v1;
        import "far/away/v1/color.proto";
        import "google/protobuf/duration.proto";
        message Ship { string name = 1; Color color = 2; google.protobuf.Duration age = 3; }
    """,
}


def make_descriptor_set(directory: Path, *, include_imports: bool = True) -> Path:
    """A FileDescriptorSet that holds far.away.v1.Ship, as protoc makes it."""
    for name, text in _FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    made = directory / ("ships.pb" if include_imports else "ships-alone.pb")
    imports = ["--include_imports"] if include_imports else []
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={directory}",
         f"--descriptor_set_out={made}", *imports, "far/away/v1/ship.proto"],
        check=True,
    )  # fmt: skip
    return made


def pack_ship(descriptor_set: Path, name: str) -> Any:
    """A green Ship in an Any."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptor_set.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    ship = GetMessageClass(pool.FindMessageTypeByName("far.away.v1.Ship"))(name=name, color=1)
    return Any(type_url="type.googleapis.com/far.away.v1.Ship", value=ship.SerializeToString())
