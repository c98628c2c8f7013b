"""Where requests come from."""

from ipaddress import IPv6Address, IPv6Network

from starlette.types import Scope

# Who has one IPv6 address has as many as they like of its network.
_IPV6_PREFIX = 64


def address_of(scope: Scope) -> str:
    """Where the request comes from; behind a proxy that is trusted, where that one says."""
    client = scope.get("client")
    return client[0] if client else "unknown"


def network_of(address: str) -> str:
    """What is counted as one: an IPv4 address, or the network of an IPv6 address."""
    if ":" not in address:
        return address
    try:
        known = IPv6Address(address.partition("%")[0])
    except ValueError:
        # A proxy that is trusted says what it likes.
        return address[:64]
    return str(known.ipv4_mapped or IPv6Network((known, _IPV6_PREFIX), strict=False))
