"""https with a certificate that is made for the test, and its end."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from server import cli
from tests.server.conftest import MODEL, Live, StartServer, wait_until

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def secure(start_server: StartServer, authority: trustme.CA, tmp_path: Path) -> Live:
    issued = authority.issue_cert("127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    return start_server(ssl_keyfile=key, ssl_certfile=certificate, shutdown_timeout=20)


def test_clients_that_trust_the_certificate_are_answered(secure: Live, trusting: ssl.SSLContext) -> None:
    assert secure.url.startswith("https://")
    with secure.http(verify=trusting) as http:
        assert http.post(CHAT, json=VALID).json()["choices"][0]["message"]["content"] == "Hello, world!"
    with httpx.Client(base_url=secure.url) as distrusting, pytest.raises(httpx.ConnectError):
        distrusting.get("/health")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(secure.url.replace("https", "http") + "/health")


def test_a_key_behind_a_password_is_named_as_such(
    authority: trustme.CA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenSSL would ask for it at the terminal, or fail with an errno where there is none."""
    issued = authority.issue_cert("127.0.0.1")
    key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    protection = BestAvailableEncryption(b"secret")
    locked, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--ssl-keyfile", str(locked), "--ssl-certfile", str(certificate)])
    assert "without a password" in f"{caught.value.code}{capsys.readouterr().err}"


def test_a_silent_client_does_not_hold_up_the_end(secure: Live, trusting: ssl.SSLContext) -> None:
    """Over TLS a connection that we close stays until the client says goodbye, which an idle one may not."""
    address = urlsplit(secure.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as plain:
        idle: Any = trusting.wrap_socket(plain, server_hostname=address.hostname)
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in idle.recv(4096)
        start = time.monotonic()
        secure.server.should_exit = True
        wait_until(lambda: not secure.thread.is_alive(), seconds=8)
        assert time.monotonic() - start < 8
