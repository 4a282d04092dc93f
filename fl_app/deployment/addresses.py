"""Where a SuperLink is: a host and a port."""

import ipaddress
import re

from persephonee.fl_app.errors import AppError

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6]:port`.

    Raises:
        AppError: it is neither.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise AppError(f"{address!r} is no address: give HOST:PORT without https://, such as fl.example.org:8443.")
    return match["v6"] or match["host"], int(match["port"])


def is_ip_address(text: str) -> bool:
    """Return whether a text is an IP address of either version."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
