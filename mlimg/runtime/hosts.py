"""What a ``host[:port]`` is by its own words: this machine, or a place of credentials. Nothing is asked."""

import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

# What clouds serve credentials from, under the names they give it.
_METADATA_NAMES: Final = frozenset({"metadata", "metadata.google.internal", "instance-data"})
# Of EC2 machines, and of the pods of EKS.
_METADATA_IPV6: Final = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("fd00:ec2::23")})


def host_of(netloc: str) -> str:
    """The host in lower case, without brackets and port; "" for what is none."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def is_loopback(netloc: str) -> bool:
    """Whether this is the machine itself."""
    address = _address(netloc)
    return host_of(netloc) == "localhost" if address is None else address.is_loopback


def serves_metadata(netloc: str) -> bool:
    """Whether this is a name or an address that only machines' metadata services have."""
    address = _address(netloc)
    if address is None:
        return host_of(netloc) in _METADATA_NAMES
    return address.is_link_local or address in _METADATA_IPV6


def _address(netloc: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    host = host_of(netloc)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:  # as resolvers do, which take ``127.1`` and ``2130706433`` for addresses
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address
