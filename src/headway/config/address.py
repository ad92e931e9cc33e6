"""Host and port of a server, read from `host:port`."""

from __future__ import annotations

from ipaddress import ip_address


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


def nameserver_of(written: str, key: str = "nameserver") -> tuple[str, int]:
    """IP address and port, 53 by default, of a name server, from `ADDRESS` or `ADDRESS:PORT`.

    `key` is its name in the sentence.

    Raises:
        ValueError: one sentence.
    """
    address, port = written, "53"
    if written.startswith("[") or written.count(":") == 1:
        address, _, port = written.removesuffix("]").replace("]:", ":").rpartition(":")
        if written.endswith("]"):
            address, port = written, "53"
    try:
        if port.isdecimal() and 0 < int(port) <= 65_535:
            return str(ip_address(address.strip("[]"))), int(port)
    except ValueError:
        pass
    raise ValueError(f'{key} must be ADDRESS or ADDRESS:PORT, for example "10.0.0.2:8600", got {written!r}')
