"""The address is taken before anything is loaded, or the program ends with a word about it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvloop

from server import cli
from server.app import create_app
from server.listening import take_address
from server.run import make_server
from server.settings import ServeSettings
from tests.server.conftest import FakeMedia
from tests.server.fakes import ByteProcessor, FakeEngineClient


def in_use() -> socket.socket:
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    one.listen()
    return one


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "--port {port}: another program uses this port"),
        ("192.0.2.1", "--port {port}: this machine does not have that address"),
        ("256.1.1.1", "is not a known address or host name"),
        ("x" * 70, "is not a known address or host name"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_before_anything_is_loaded(
    host: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "demo_model", lambda: pytest.fail("loaded"))
    with in_use() as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            cli.main(["serve", "--host", host, "--port", str(port)])
    message = str(caught.value.code)
    assert message.startswith("specvlm: ")
    assert f"--host '{host}'" in message
    assert words.format(port=port) in message


def test_every_address_of_a_name_is_taken() -> None:
    with in_use() as other:
        port = other.getsockname()[1]
    sockets = take_address("localhost", port)
    told = {one.getsockname()[:2] for one in sockets}
    for one in sockets:
        one.close()
    assert {("127.0.0.1", port)} <= told <= {("127.0.0.1", port), ("::1", port)}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_of_two_servers_that_load_at_once_the_first_to_listen_has_the_address(run: Any) -> None:
    processor = ByteProcessor()
    engine = FakeEngineClient(processor)
    app = create_app(ServeSettings(), client=engine, processor=processor, media=FakeMedia())
    server = make_server(ServeSettings(), app, engine)
    [first] = take_address("127.0.0.1", 0)
    late = take_address(*first.getsockname())
    with first:
        first.listen()
        run(asyncio.wait_for(server.serve(late), 20))
    assert server.exit_code == 1
    assert engine.state == "stopped"
    assert not server.started
