"""Which URLs users may give, for webhooks and clouds, and which addresses anybody could call.

The rules are for users who are not trusted: what a URL says must be plain to every parser, and what it leads
to must not be within reach of the control plane alone.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import structlog
from yarl import URL

from deployerp.core.errors import AddressRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

log = structlog.get_logger()
_LONGEST_URL = 2048
# No spaces, controls, backslashes or look-alike letters: every parser then sees the same host.
_URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")
# What stands between the slashes, without anything on which parsers disagree: `h:`, `h:+80`, `h:8_0`.
_AUTHORITY = re.compile(r"(\[[^]]*\]|[^:]*)(:[0-9]{1,5})?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# How the C library recognises the numbers of which it would make an address: 127.1, 0x7f000001, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

# The "bad ports" of the Fetch standard (https://fetch.spec.whatwg.org/#port-blocking), which browsers refuse
# too, and 0. Their servers speak other protocols, and some take commands out of what is an HTTP request to
# us: with a mail server, a user could have us send mail. That holds on an operator's own networks as well.
_PORTS_OF_OTHERS = frozenset(
    (
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103,
        104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513,
        514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720,
        1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    )
)  # fmt: skip

# The special-purpose registries of IANA (RFC 6890 and what followed it), multicast, and Azure's metadata
# service, which is the one that hides behind a public address.
_NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_IPV6 = IPv6Network("2000::/3")
# Inside the public block: protocol assignments with Teredo, documentation, 6to4 (an IPv4 address in
# disguise, and obsolete), the AS112 sink, documentation again.
_NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_LOOPBACK = [ip_address("127.0.0.1"), ip_address("::1")]
_NAT64 = IPv6Network("64:ff9b::/96")


def check_url(url: str) -> str:
    """The rule that a user's URL keeps to by its form alone; returns it as it is.

    Raises ValueError, so that a schema can use it as a validator. Where the URL leads is checked when it
    is used, since names can change their addresses.
    """
    if len(url) > _LONGEST_URL:
        raise ValueError(f"must have at most {_LONGEST_URL} characters")
    if not _URL_CHARACTERS.fullmatch(url):
        raise ValueError("must be plain ASCII: write an international name in its xn-- form")
    try:
        parsed = URL(url)
    except ValueError:
        raise ValueError("must be a URL such as https://example.com/path") from None
    if parsed.scheme not in ("http", "https"):
        raise ValueError("must begin with https:// or http://")
    authority = re.split("[/?#]", url.partition("//")[2], maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("must not hold a user name or password")
    if "#" in url:
        raise ValueError("must not have a fragment (#...)")
    if not _AUTHORITY.fullmatch(authority):
        raise ValueError("must have a host such as example.com, with or without a port number")
    if parsed.port in _PORTS_OF_OTHERS:
        raise ValueError(f"must not use port {parsed.port}, which belongs to another protocol than HTTP")
    _check_host(parsed.raw_host or "", bracketed=authority.startswith("["))
    return url


def check_destination(url: str, allowed_networks: Sequence[Network]) -> str:
    """The rule for where a URL leads as far as its text tells; returns it as it is.

    Raises ValueError where it never works: for an address, or this machine's own name, that must not be
    called. Where other names lead is looked up when they are used.
    """
    host = (URL(url).raw_host or "").removesuffix(".").lower()
    if is_address(host):
        leads_to = [ip_address(host)]
    else:
        leads_to = _LOOPBACK if host == "localhost" or host.endswith(".localhost") else []
    if leads_to and not any(may_be_called(address, allowed_networks) for address in leads_to):
        raise ValueError(
            f"must lead to a public address, and {host} is none: use another, or let the operator add its"
            " network to DEPLOYERP_ALLOWED_NETWORKS"
        )
    return url


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed:
        if not is_address(host) or "%" in host:
            raise ValueError("must have a valid IPv6 address in its brackets, without a zone")
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("must have a host name such as example.com")
    if _NUMBER.fullmatch(labels[-1]) and not is_address(host):
        raise ValueError("must write an IPv4 address as four decimal numbers")


def is_address(host: str) -> bool:
    """Whether a host is an address itself and not a name that has some."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def check_addresses(host: str, addresses: Sequence[Address], allowed_networks: Sequence[Network]) -> None:
    """Raises AddressRefused when a host has an address that must not be called, even among others."""
    refused = [str(address) for address in addresses if not may_be_called(address, allowed_networks)]
    if refused:
        # The address is for the operator only: it would tell a user what the inner network is like.
        log.warning("address refused", host=host, addresses=refused)
        raise AddressRefused(
            f"{host} leads to an address that is not public, and nothing was sent: use a public address,"
            " or let the operator add its network to DEPLOYERP_ALLOWED_NETWORKS."
        )


def may_be_called(address: Address, allowed_networks: Sequence[Network]) -> bool:
    """Whether the control plane may connect to an address that a user gave, or that a name of theirs has."""
    plain = address
    if isinstance(address, IPv6Address):
        # A zone is one of our own interfaces.
        if address.scope_id is not None:
            return False
        # The kernel treats a mapped address as the IPv4 address in it; a NAT64 gateway has its own idea.
        plain = address.ipv4_mapped or address
    return any(plain in network for network in allowed_networks) or is_public(address)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach the address, so that we give nothing away by calling it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_IPV6 and not any(address in network for network in _NOT_PUBLIC_IPV6)
