"""Binds the address to listen on before anything is loaded, so that a port in use is reported at once."""

from __future__ import annotations

import errno
import socket
from typing import Any

from pydantic_settings import SettingsError


def take_address(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of ``host``. None accepts connections until a server listens.

    With port 0 each gets a free port of its own. Raises ``SettingsError``.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"--host '{host}' is not a known address or host name ({error}); use '127.0.0.1' for this "
            "machine only, or '0.0.0.0' for all interfaces"
        ) from None
    taken: list[socket.socket] = []
    failed: list[OSError] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            taken.append(bound(socket.socket(family, kind, protocol), address))
        except OSError as error:
            failed.append(error)
    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as IPv6 that is disabled
    if wrong := [one for one in failed if one.errno not in missing or not taken]:
        for one in taken:
            one.close()
        raise SettingsError(f"cannot listen on --host '{host}' --port {port}: {reason(wrong[0])}")
    return taken


def bound(to_bind: socket.socket, address: Any) -> socket.socket:
    try:
        to_bind.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if to_bind.family == socket.AF_INET6:
            to_bind.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        to_bind.bind(address)
    except OSError:
        to_bind.close()
        raise
    return to_bind


def reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another program uses this port; stop it, or choose another port (0 picks a free one)"
        case errno.EACCES:
            return "this port requires root privileges; choose one from 1024 up"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address; '0.0.0.0' listens on all that it has"
        case _:
            return str(error)
