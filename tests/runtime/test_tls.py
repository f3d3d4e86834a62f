"""TLS files, and what is wrong with those that cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opservice.domain.errors import StartupError
from opservice.runtime.settings.security import SecuritySettings
from opservice.runtime.tls import read_tls_files, ssl_context
from support.certificates import Authority

Files = dict[str, Path]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_without_files_there_is_no_tls() -> None:
    assert read_tls_files(SecuritySettings()) is None


def test_a_certificate_and_its_key_are_read(authority: Authority) -> None:
    pair = authority.issue()

    assert read_tls_files(SecuritySettings(tls_cert=pair.certificate, tls_key=pair.key)) is not None


def test_there_may_be_any_text_beside_the_certificates(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("commented")
    bundle = tmp_path / "bundle.pem"
    comment = "# Főtanúsítvány\n".encode() + "# Fo\xe9\n".encode("latin-1")
    bundle.write_bytes(comment + authority.certificate.read_bytes())
    settings = SecuritySettings(tls_cert=pair.certificate, tls_key=pair.key, tls_client_ca=bundle)

    files = read_tls_files(settings)

    assert files is not None
    assert len(ssl_context(files).get_ca_certs()) == 1


def another_key(authority: Authority, directory: Path) -> Files:
    return {
        "tls_cert": authority.issue("one").certificate,
        "tls_key": authority.issue("another").key,
    }


def missing_file(authority: Authority, directory: Path) -> Files:
    return {"tls_cert": authority.issue("two").certificate, "tls_key": directory / "missing.key"}


def not_pem(authority: Authority, directory: Path) -> Files:
    text = directory / "not.pem"
    text.write_text("no certificate")
    return {"tls_cert": text, "tls_key": authority.issue("three").key}


def encrypted_key(authority: Authority, directory: Path) -> Files:
    pair = authority.issue("encrypted", password=b"secret")
    return {"tls_cert": pair.certificate, "tls_key": pair.key}


def bad_client_ca(authority: Authority, directory: Path) -> Files:
    pair = authority.issue("four")
    return {"tls_cert": pair.certificate, "tls_key": pair.key, "tls_client_ca": pair.key}


def key_alone(authority: Authority, directory: Path) -> Files:
    return {"tls_key": authority.issue("five").key}


WRONG = {
    "a key of another certificate": (another_key, "the TLS key does not belong to the certificate"),
    "a missing file": (missing_file, "missing.key: No such file or directory"),
    "a file that is not PEM": (not_pem, "the TLS files cannot be used"),
    "an encrypted key": (encrypted_key, "the TLS key is encrypted: give a key without a password"),
    "a client authority that is none": (bad_client_ca, "the TLS files cannot be used"),
    "a key without a certificate": (key_alone, "--tls-cert and --tls-key belong together"),
}


@pytest.mark.parametrize(("make", "complaint"), WRONG.values(), ids=WRONG)
def test_files_that_do_not_work_are_refused_with_what_is_wrong(
    tmp_path: Path,
    authority: Authority,
    make: Callable[[Authority, Path], Files],
    complaint: str,
) -> None:
    files: Any = make(authority, tmp_path)

    with pytest.raises(StartupError) as caught:
        read_tls_files(SecuritySettings(**files))

    assert complaint in caught.value.message
