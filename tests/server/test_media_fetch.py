"""Fetching from a real server on this machine that the tests pretend is a public one."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from server.media import MediaConfig, MediaError, MediaLoader, resolve
from tests.server.media_host import (
    PUBLIC,
    RED,
    Names,
    ToThisMachine,
    code,
    fetch,
    forever,
    load_one,
    red_png,
    reply,
    serving,
)


async def test_a_public_picture_is_fetched_from_the_address_that_was_checked() -> None:
    names = Names()
    async with serving(reply(red_png(), headers="Content-Type: text/html\r\n")) as host:
        fetched = await fetch(host, "http://Pictures.Example:8080/a.png?x=1#frag", names)
    assert fetched.image is not None
    assert fetched.image.getpixel((0, 0)) == RED
    assert fetched.addresses == [PUBLIC]
    assert names.asked == [("pictures.example", 8080)]
    (request,) = host.requests
    assert request.startswith("GET /a.png?x=1 HTTP/1.1\r\n")
    assert "\r\nhost: pictures.example:8080\r\n" in request.lower()
    assert "cookie" not in request.lower()
    assert "authorization" not in request.lower()


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a00:1"],
        ["fe80::1%eth0"],
        [PUBLIC, "192.168.0.1"],
        ["2606:4700::1111", "::1"],
        [],
    ],
)
async def test_a_name_with_any_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    async with serving(reply(red_png())) as host:
        fetched = await fetch(host, names=Names(addresses))
    assert code(fetched) == "forbidden_image_host"
    assert (fetched.addresses, host.requests) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "https://10.0.0.1:8443/",
    ],
)
async def test_an_address_in_the_url_is_judged_without_a_look_up(url: str) -> None:
    names = Names()
    async with serving(reply(red_png())) as host:
        fetched = await fetch(host, url, names)
    assert code(fetched) == "forbidden_image_host"
    assert (names.asked, fetched.addresses) == ([], [])


async def test_the_real_resolver_and_transport_refuse_this_machine() -> None:
    async with serving(reply(red_png())) as host:
        loader = MediaLoader()
        for name in ("localhost", "127.0.0.1", "[::1]", "localhost."):
            with pytest.raises(MediaError) as caught:
                await load_one(loader, f"http://{name}:{host.port}/")
            assert caught.value.code == "forbidden_image_host"
        await loader.aclose()
    assert host.requests == []
    assert "127.0.0.1" in await resolve("localhost", 80) or "::1" in await resolve("localhost", 80)


async def test_a_name_that_changes_its_address_is_looked_up_once() -> None:
    names = Names([PUBLIC], ["127.0.0.1"])
    async with serving(reply(red_png())) as host:
        fetched = await fetch(host, names=names)
    assert (len(names.asked), fetched.addresses) == (1, [PUBLIC])
    assert fetched.image is not None


async def test_a_name_that_does_not_exist_looks_like_a_private_one() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known: db.internal")

    async with serving(reply()) as host:
        private = await fetch(host, names=Names(["10.0.0.1"]))
    loader = MediaLoader(resolver=nowhere)
    with pytest.raises(MediaError) as caught:
        await load_one(loader, "http://db.internal/")
    await loader.aclose()
    assert private.error is not None
    assert caught.value.message == private.error.message


async def test_the_next_address_is_tried_when_one_is_unreachable() -> None:
    async with serving(reply(red_png())) as host:
        fetched = await fetch(host, names=Names(["203.0.114.1", PUBLIC]))
        assert fetched.addresses == ["203.0.114.1", PUBLIC]
        assert fetched.image is not None
    assert code(await fetch(host, names=Names(["203.0.114.1"]))) == "image_fetch_failed"


async def test_only_allowed_domains() -> None:
    async with serving(reply(red_png())) as host:
        names = Names()
        fetched = await fetch(host, "http://evil.example/", names, allowed_domains=("good.example",))
        assert (code(fetched), names.asked) == ("forbidden_image_host", [])
        fetched = await fetch(host, "http://a.good.example/", names, allowed_domains=("good.example",))
        assert fetched.image is not None
        # Being allowed does not make an address public.
        inside = await fetch(
            host, "http://good.example/", Names(["10.0.0.1"]), allowed_domains=("good.example",)
        )
        assert code(inside) == "forbidden_image_host"


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
async def test_redirects_are_not_followed(status: str) -> None:
    async with serving(reply(status=status, headers="Location: http://169.254.169.254/\r\n")) as host:
        fetched = await fetch(host)
    assert code(fetched) == "image_fetch_failed"
    assert fetched.error is not None
    assert "redirects" in fetched.error.message
    assert len(host.requests) == len(fetched.addresses) == 1


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial", "404 Not Found", "500 Oops"])
async def test_only_status_200_counts(status: str) -> None:
    async with serving(reply(red_png(), status)) as host:
        assert code(await fetch(host)) == "image_fetch_failed"


async def test_slow_drip_ends_at_the_deadline() -> None:
    begin = time.monotonic()
    async with serving(forever(b"x", 0.02)) as host:
        assert code(await fetch(host, timeout_s=0.3)) == "image_timeout"
    async with serving(forever(b"X-Header: y\r\n", 0.02, b"HTTP/1.1 200 OK\r\n")) as host:
        assert code(await fetch(host, timeout_s=0.3)) == "image_timeout"
    assert time.monotonic() - begin < 3


async def test_a_slow_resolver_counts_too() -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(10)
        return [PUBLIC]

    loader = MediaLoader(MediaConfig(timeout_s=0.1), resolver=slow)
    with pytest.raises(MediaError) as caught:
        await load_one(loader, "http://pictures.example/")
    await loader.aclose()
    assert caught.value.code == "image_timeout"


async def test_an_endless_body_is_cut_off() -> None:
    async with serving(forever(b"x" * 65536, 0)) as host:
        fetched = await fetch(host, max_bytes=200_000, timeout_s=20)
    assert code(fetched) == "image_too_large"


@pytest.mark.parametrize("extra", [-1, 0])
async def test_the_limit_of_bytes_is_exact(extra: int) -> None:
    data = red_png()
    async with serving(reply(data)) as host:
        fetched = await fetch(host, max_bytes=len(data) + extra)
    assert code(fetched) == ("image_too_large" if extra else None)


async def test_compressed_bodies_are_not_unpacked() -> None:
    async with serving(reply(gzip.compress(red_png()), headers="Content-Encoding: gzip\r\n")) as host:
        assert code(await fetch(host)) == "unsupported_image_format"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_broken_answers(raw: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    async with serving(answer) as host:
        assert code(await fetch(host)) == "image_fetch_failed"


async def test_what_is_no_picture_is_refused_whatever_its_type_says() -> None:
    async with serving(reply(b"<html>", headers="Content-Type: image/png\r\n")) as host:
        assert code(await fetch(host)) == "unsupported_image_format"


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(reply(red_png())) as host:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{host.port}")
        # An address of the benchmarking net is never answered; only a proxy could bring a picture.
        monkeypatch.setattr("server.media.is_public", lambda _: True)
        loader = MediaLoader(MediaConfig(timeout_s=0.5))
        with pytest.raises(MediaError):
            await load_one(loader, "http://198.18.0.1/a.png")
        await loader.aclose()
    assert host.requests == []


async def test_downloads_are_bounded_and_connections_not_kept() -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await reply(red_png())(writer)

    async with serving(slow) as host:
        loader = MediaLoader(
            MediaConfig(max_downloads=3), resolver=Names(), transport=ToThisMachine(host.port)
        )
        images = await asyncio.gather(*(load_one(loader, f"http://h.example/{i}") for i in range(10)))
        await loader.aclose()
    assert len(images) == len(host.requests) == 10
    assert host.peak == 3


async def test_slow_hosts_do_not_keep_data_urls_waiting() -> None:
    async with serving(forever(b"x", 0.02)) as host:
        loader = MediaLoader(
            MediaConfig(max_downloads=1, timeout_s=5), resolver=Names(), transport=ToThisMachine(host.port)
        )
        slow = asyncio.create_task(load_one(loader, "http://h.example/"))
        await asyncio.sleep(0.05)
        url = "data:image/png;base64," + base64.b64encode(red_png()).decode()
        async with asyncio.timeout(2):
            assert (await load_one(loader, url)).size == (4, 4)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        await loader.aclose()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of ``pictures.example`` in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.example"
    options = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *options], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.mark.parametrize(
    ("name", "trusted", "wanted"),
    [
        ("pictures.example", True, None),
        ("other.example", True, "image_fetch_failed"),  # the certificate is checked against the name
        ("pictures.example", False, "image_fetch_failed"),
    ],
)
async def test_certificates_are_checked_against_the_name(
    certificate: Path, name: str, trusted: bool, wanted: str | None
) -> None:
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate)
    asked: list[str | None] = []
    served.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)
    trust = ssl.create_default_context(cafile=str(certificate)) if trusted else True
    async with serving(reply(red_png()), served) as host:
        fetched = await fetch(host, f"https://{name}/a.png", verify=trust)
    assert code(fetched) == wanted
    assert asked == [name]
    assert fetched.addresses == [PUBLIC]
