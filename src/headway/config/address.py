"""Host and port of a server, read from `host:port`."""

from __future__ import annotations


def host_and_port(address: object, key: str, *, port_min: int = 0, otherwise: str = "") -> tuple[str, int]:
    """Both parts of an address, brackets of IPv6 taken off.

    Args:
        address: what the user wrote.
        key: its name in the sentence.
        port_min: the lowest port; 0 lets the system choose one.
        otherwise: what else may stand there, for the sentence.

    Raises:
        ValueError: one sentence.
    """
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isdecimal() or not port_min <= int(port) <= 65_535:
        raise ValueError(f'{key} must be host:port, for example "127.0.0.1:8000"{otherwise}, got {address!r}')
    return host.strip("[]"), int(port)
