"""Files that cannot be used stop the start: the message says why, and nothing of what is secret in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opservice.auth.policy import read_tokens
from opservice.domain.errors import StartupError
from support.identities import AUDIENCE, ISSUER, TokenFile, make_key
from support.server import ServerProcess

SECRET = "opservice_what-nobody-is-to-see-0123456789abcdef"


def with_private_key() -> str:
    return json.dumps({"keys": [{**make_key("one").jwk, "d": SECRET}]})


BROKEN = {
    "tokens": (f"- {{subject: a, sha256: {SECRET}}}", "sha256 must be 64 hexadecimal digits"),
    "policy": (f"subjects: [{SECRET}", "is not YAML at line"),
    "jwks": (with_private_key(), "it has a private key"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_server_does_not_start_with_a_broken_file(tmp_path: Path, what: str) -> None:
    content, complaint = BROKEN[what]
    broken = tmp_path / what
    broken.write_text(content)
    settings: dict[str, Any] = {what: broken}
    if what == "policy":  # which needs somebody to grant something to
        static = TokenFile(tmp_path)
        static.add("alice")
        settings["tokens"] = static.file
    if what == "jwks":
        settings |= {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    database = tmp_path / "operations.db"
    server = ServerProcess(tmp_path, f"sqlite:///{database}", **settings)

    assert server.expect_refusal() == 1

    assert complaint in server.stderr
    assert str(broken) in server.stderr
    assert "Traceback" not in server.stderr
    assert SECRET not in server.stderr + server.stdout
    assert not database.exists()


def test_a_token_in_the_place_of_a_field_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(f"- {SECRET}: alice")

    with pytest.raises(StartupError, match="entry 1: unknown") as caught:
        read_tokens(file)

    assert SECRET not in caught.value.message
