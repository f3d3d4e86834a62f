"""The generated code is what proto/ gives, and lives in peace with the Yandex SDK."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor

ROOT = Path(__file__).parents[2]
TREES = ["src/opservice/_proto", "client/src/opservice_client/_proto"]
CHECKED_IN, CLIENTS = (ROOT / tree for tree in TREES)

MODULES = sorted(
    ".".join(path.relative_to(CHECKED_IN).with_suffix("").parts)
    for path in CHECKED_IN.rglob("*_pb2.py")
)
YANDEX_MODULES = [module for module in MODULES if module.startswith("yandex.")]
OURS = "opservice._proto."
THE_SDKS = ""


def generate(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "scripts/gen_protos.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def run_python(code: str, *arguments: str) -> str:
    """Run `code` in a fresh process, whose descriptor pool is empty, and return what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def serialized_descriptors(root: str) -> dict[str, str]:
    """Descriptors, in hex, of the Yandex files that we ship, as `root`'s modules hold them."""
    code = """
import importlib, json, sys
root, modules = json.loads(sys.argv[1])
files = [importlib.import_module(root + module).DESCRIPTOR for module in modules]
print(json.dumps({file.name: file.serialized_pb.hex() for file in files}))
"""
    descriptors: dict[str, str] = json.loads(run_python(code, json.dumps([root, YANDEX_MODULES])))
    return descriptors


def methods() -> list[MethodDescriptor]:
    """Every RPC of the services in proto/."""
    files = [importlib.import_module(OURS + module).DESCRIPTOR for module in MODULES]
    return [
        method
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def http_bindings(method: MethodDescriptor) -> list[tuple[str, str]]:
    """Verb and path of the method's google.api.http annotation; empty when it has none."""
    return [
        (field.name, path)
        for option, rule in method.GetOptions().ListFields()
        if option.full_name == "google.api.http"
        for field, path in rule.ListFields()
        if field.containing_oneof is not None
    ]


@pytest.mark.slow
def test_regenerating_changes_nothing(tmp_path: Path) -> None:
    process = generate(str(tmp_path))

    assert process.returncode == 0, process.stderr
    for each in TREES:
        assert tree(tmp_path / each) == tree(ROOT / each)


@pytest.mark.slow
def test_check_fails_only_when_the_checked_in_code_is_stale(tmp_path: Path) -> None:
    for part in ["proto", "scripts", *TREES]:
        shutil.copytree(ROOT / part, tmp_path / part)
    assert generate("--check", root=tmp_path).returncode == 0
    with (tmp_path / "proto/opservice/v1/operation_record.proto").open("a") as proto:
        proto.write("message Unheard {}\n")

    process = generate("--check", root=tmp_path)

    assert process.returncode == 1
    assert "run scripts/gen_protos.sh" in process.stderr


@pytest.mark.slow
def test_stubs_load_nothing_from_a_top_level_yandex_package() -> None:
    code = """
import importlib, json, sys
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("yandex", "yandexcloud")))
"""
    modules = [
        OURS + ".".join(path.relative_to(CHECKED_IN).with_suffix("").parts)
        for path in CHECKED_IN.rglob("*_pb2*.py")
    ]

    assert run_python(code, json.dumps(modules)) == "[]\n"


def test_yandex_descriptors_are_byte_equal_to_the_sdks() -> None:
    assert serialized_descriptors(OURS) == serialized_descriptors(THE_SDKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "roots", [(OURS, THE_SDKS), (THE_SDKS, OURS)], ids=["ours first", "the SDK first"]
)
def test_stubs_and_the_yandex_sdk_load_in_one_process(roots: tuple[str, str]) -> None:
    code = """
import importlib, json, sys
roots, modules = json.loads(sys.argv[1])
for root in roots:
    if not root:
        import yandexcloud
    for module in modules:
        importlib.import_module(root + module)
"""
    run_python(code, json.dumps([roots, YANDEX_MODULES]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "roots", [(OURS, THE_SDKS), (THE_SDKS, OURS)], ids=["ours first", "the SDK first"]
)
def test_our_operation_is_the_sdks_operation_class(roots: tuple[str, str]) -> None:
    code = """
import importlib, sys
module = "yandex.cloud.operation.operation_pb2"
one, other = (importlib.import_module(root + module) for root in sys.argv[1:])
assert one is not other
assert one.Operation is other.Operation
"""
    run_python(code, *roots)


def test_every_rpc_has_an_http_annotation() -> None:
    lacking = [method.full_name for method in methods() if not http_bindings(method)]

    assert methods()
    assert lacking == []


def test_every_http_path_names_only_fields_of_its_request() -> None:
    for method in methods():
        for _, path in http_bindings(method):
            assert set(re.findall(r"{(\w+)}", path)) <= set(method.input_type.fields_by_name), path


def test_no_two_rpcs_share_an_http_verb_and_path() -> None:
    bindings = [binding for method in methods() for binding in http_bindings(method)]

    assert sorted(bindings) == sorted(set(bindings))


def test_the_server_and_the_client_load_in_one_process_and_share_their_classes() -> None:
    code = """
import importlib, sys
for module in ("opservice.v1.producer_service_pb2", "yandex.cloud.operation.operation_pb2"):
    ours, theirs = (importlib.import_module(root + module) for root in sys.argv[1:])
    assert ours is not theirs
    for name in ours.DESCRIPTOR.message_types_by_name:
        assert getattr(ours, name) is getattr(theirs, name)
"""
    run_python(code, OURS, "opservice_client._proto.")


def test_the_clients_code_demands_no_version_of_protobuf_or_grpcio() -> None:
    code = [path.read_text() for path in CLIENTS.rglob("*.py")]

    assert any("AddSerializedFile" in text for text in code)
    assert not any("ValidateProtobufRuntimeVersion" in text for text in code)
    assert not any("GENERATED_VERSION" in text for text in code)


def test_stubs_demand_no_protobuf_newer_than_6_31_1() -> None:
    demanded = {
        tuple(map(int, match.groups()))
        for path in CHECKED_IN.rglob("*_pb2.py")
        for match in re.finditer(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),", path.read_text())
    }

    assert demanded
    assert max(demanded) <= (6, 31, 1)


def test_stubs_demand_no_grpcio_newer_than_1_76() -> None:
    demanded = {
        tuple(map(int, match.groups()))
        for path in CHECKED_IN.rglob("*_pb2_grpc.py")
        for match in re.finditer(r"GENERATED_VERSION = '(\d+)\.(\d+)\.(\d+)'", path.read_text())
    }

    assert demanded
    assert max(demanded) <= (1, 76, 0)
