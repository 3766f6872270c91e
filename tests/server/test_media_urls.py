"""Which addresses are refused before anything is looked up or connected to."""

from __future__ import annotations

import pytest

from server.media_url import MediaError, host_allowed, is_public, parse_web_url


@pytest.mark.parametrize(
    "url",
    [
        "http://user@host.example/a.png",
        "http://user:password@host.example/",
        "http://host.example@127.0.0.1/",
        "http://host.example\\@127.0.0.1/",
        "http://127.0.0.1\\.host.example/",
        "http://host.example\t/a.png",
        " http://host.example/a.png",
        "http://host.example/a b.png",
        "http://host.example/\r\nX-Evil: 1",
        "http://host.example\x00/",
        "http://host.example/\ud800",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.0x/",
        "http://127.0.0.01/",
        "http://256.0.0.1/",
        "http://[::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[127.0.0.1]/",
        "http://[::1/",
        "http://::1/",
        "http://host..example/",
        "http://.example/",
        "http://ｌocalhost/",
        "http://host.example:0/",
        "http://host.example:65536/",
        "http://host.example:8o/",
        "http:///a.png",
        "http:host.example/a.png",
        "http:/host.example/a.png",
        "ftp://host.example/a.png",
        "gopher://host.example/",
        f"http://{'a' * 64}.example/",
        "http://host.example/" + "a" * 9000,
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(MediaError) as caught:
        parse_web_url(url)
    assert caught.value.code == "invalid_image_url"


@pytest.mark.parametrize(
    ("url", "host", "header", "at"),
    [
        ("https://Host.Example/A.png", "host.example", "host.example", "https://1.1.1.1:443/A.png"),
        ("http://host.example.", "host.example", "host.example", "http://1.1.1.1:80/"),
        ("http://a_b.example:8080?x=1#f", "a_b.example", "a_b.example:8080", "http://1.1.1.1:8080/?x=1"),
        ("https://h.example/ü%20?q=%C3", "h.example", "h.example", "https://1.1.1.1:443/%C3%BC%20?q=%C3"),
        ("http://8.8.8.8/", "8.8.8.8", "8.8.8.8", "http://1.1.1.1:80/"),
        (
            "http://[2606:4700::1111]:81/",
            "2606:4700::1111",
            "[2606:4700::1111]:81",
            "http://1.1.1.1:81/",
        ),
    ],
)
def test_plain_urls_are_taken_apart(url: str, host: str, header: str, at: str) -> None:
    parsed = parse_web_url(url)
    assert (parsed.host, parsed.host_header, parsed.at("1.1.1.1")) == (host, header, at)


def test_an_ipv6_address_is_connected_to_in_brackets() -> None:
    assert parse_web_url("http://h.example/x").at("2606:4700::1") == "http://[2606:4700::1]:80/x"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "240.0.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "192.0.0.192",
        "192.88.99.1",
        "168.63.129.16",
        "198.18.0.1",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2002:7f00:1::",
        "2002:808:808::",
        "2001:0:808:808::",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1111%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "not an address",
        "2130706433",
        "",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "64:ff9b::808:808"],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("host", "allowed", "yes"),
    [
        ("anything.example", [], True),
        ("good.example", ["good.example"], True),
        ("img.good.example", ["Good.Example."], True),
        ("evilgood.example", ["good.example"], False),
        ("good.example.evil.example", ["good.example"], False),
        ("example", ["good.example"], False),
        ("8.8.8.8", ["8.8.8.8"], True),
    ],
)
def test_allowed_domains(host: str, allowed: list[str], yes: bool) -> None:
    assert host_allowed(host, allowed) is yes
