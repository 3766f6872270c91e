"""Decides which addresses pictures may be fetched from. Parses and checks URLs; does not connect anywhere.

Anything that two parsers could read differently is rejected, not repaired (CVE-2025-6242, CVE-2026-24779).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import quote

MAX_URL_LEN: Final = 8192

_WEB_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\xa0\\\ud800-\udfff]")
# Numbers that resolvers may read as (part of) an IPv4 address: 2130706433, 0x7f.1, 0177.0.0.1
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Counted as global by the ipaddress module (Python 3.11), yet not hosts of the public internet.
_REFUSED: Final = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's host, seen from every virtual machine
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


class MediaError(Exception):
    """A picture cannot be loaded. ``message`` is our own, never taken from a library or a remote host."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MediaUnavailable(Exception):
    """Pictures cannot be decoded now, which is not their fault."""


@dataclass(frozen=True, slots=True)
class WebURL:
    """``host`` is lower case, without brackets or trailing dot; ``target`` is ASCII and begins with ``/``."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> str | None:
        """The host if it is an IP address, ``None`` if it is a name."""
        try:
            return str(ip_address(self.host))
        except ValueError:
            return None

    @property
    def host_header(self) -> str:
        default = {"http": 80, "https": 443}[self.scheme]
        return bracketed(self.host) + ("" if self.port == default else f":{self.port}")

    def at(self, address: str) -> str:
        """Return this URL with ``address`` in place of the name, so that the name is not looked up again."""
        return f"{self.scheme}://{bracketed(address)}:{self.port}{self.target}"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_web_url(url: str) -> WebURL:
    match = None if len(url) > MAX_URL_LEN or _AMBIGUOUS.search(url) else _WEB_URL.fullmatch(url)
    host = _host(match["host"]) if match else None
    if match is None or host is None:
        raise MediaError(
            "invalid_image_url",
            "The image URL cannot be fetched: use http or https and a plain host name, without user names, "
            "whitespace, backslashes or unusual spellings of addresses.",
        )
    scheme = match["scheme"].lower()
    port = int(match["port"] or {"http": 80, "https": 443}[scheme])
    if not 0 < port < 65536:
        raise MediaError("invalid_image_url", "The image URL has a port outside 1 to 65535.")
    target = match["target"] or "/"
    if target.startswith("?"):
        target = "/" + target
    return WebURL(scheme, host, port, quote(target, safe="%/:=&?~+!$,;'@()*[]-._"))


def _host(text: str) -> str | None:
    host = text.lower()
    if host.startswith("["):
        try:
            return str(IPv6Address(host[1:-1]))
        except ValueError:
            return None
    labels = host.removesuffix(".").split(".")
    if not all(labels) or max(map(len, labels)) > 63 or len(host) > 253:
        return None
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))  # four decimal numbers without leading zeros, and nothing else
        except ValueError:
            return None
    return ".".join(labels)


def host_allowed(host: str, allowed: Iterable[str]) -> bool:
    """Whether ``host`` is one of these domains or below one; an empty list allows every host."""
    domains = [domain.lower().strip(".") for domain in allowed]
    return not domains or any(host == domain or host.endswith("." + domain) for domain in domains)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the public internet, however it is written."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:  # how IPv6-only networks reach IPv4
            return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST or ip.scope_id is not None:
            return False
    refused = any(ip.version == network.version and ip in network for network in _REFUSED)
    return ip.is_global and not ip.is_multicast and not refused
