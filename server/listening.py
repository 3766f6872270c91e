"""The address to listen on, taken before anything is loaded: what is in use is told at once."""

from __future__ import annotations

import errno
import socket
from typing import Any

from pydantic_settings import SettingsError


def take_address(host: str, port: int) -> list[socket.socket]:
    """One socket for each address that ``host`` stands for. Nobody is let in until a server listens.

    Raises ``SettingsError``. With port 0 each has a free one of its own.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"--host '{host}' is no address or name that is known here ({error}); "
            "'127.0.0.1' is this machine alone, '0.0.0.0' whatever reaches it"
        ) from None
    taken: list[socket.socket] = []
    failed: list[OSError] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            taken.append(bound(socket.socket(family, kind, protocol), address))
        except OSError as error:
            failed.append(error)
    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # as an IPv6 that is switched off
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
            return "another program has that port; stop it, or choose another port (0 takes a free one)"
        case errno.EACCES:
            return "only root may take that port; choose one from 1024 on"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address; '0.0.0.0' is all that it has"
        case _:
            return str(error)
