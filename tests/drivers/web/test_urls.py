"""The rules of URLs and addresses, as such; what they keep out is in test_hostile_urls.py."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployerp.drivers.web.urls import check_destination, check_url, is_public


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/webhooks",
        "http://example.com",
        "HTTPS://EXAMPLE.com:8443/a/b?c=d%20e",
        "https://example.com/@me?mail=a@b.example",
        "https://xn--bcher-kva.example/",
        "https://example.com./",
        "https://my_host.example/",
        "https://93.184.216.34/",
        "https://[2606:4700::1111]:8443/",
        "https://1.2.3.4.example/",
        "http://example.com:8080/",
        "http://example.com:65535",
    ],
)
def test_ordinary_urls_keep_to_the_rule(url: str) -> None:
    assert check_url(url) == url


@given(st.text() | st.from_regex(r"https?://[!-~]{0,40}", fullmatch=True))
@example("http://[")
@example("http://[::ffff:1.2.3.4.5]/")
@example("http://xn--/")
def test_the_rule_raises_nothing_but_its_error(url: str) -> None:
    complaint: Exception | None = None
    try:
        assert check_url(url) == url
    except ValueError as error:
        complaint = error
    assert complaint is None or (type(complaint) is ValueError and str(complaint).startswith("must "))


LOCAL = [
    "http://localhost:8080/",
    "http://LocalHost./",
    "https://a.localhost/",
    "http://127.0.0.1/",
    "http://[::1]/",
]


@pytest.mark.fault("23")
@pytest.mark.parametrize("url", LOCAL)
def test_our_own_machine_is_a_destination_only_where_the_operator_allows_it(url: str) -> None:
    allowed = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
    assert check_destination(url, allowed) == url
    for networks in ([], [ipaddress.ip_network("10.0.0.0/8")]):
        with pytest.raises(ValueError, match=r"must lead to a public address.*DEPLOYERP_ALLOWED_NETWORKS"):
            check_destination(url, networks)


@pytest.mark.fault("23")
@pytest.mark.parametrize("url", ["https://example.com/", "https://93.184.216.34/", "https://internal/"])
def test_a_name_is_looked_up_only_when_it_is_used(url: str) -> None:
    assert check_destination(url, []) == url


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6) | st.ip_addresses(v=6, network="2000::/3"))
def test_what_is_public_is_global_to_the_standard_library_too(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast
    assert is_public(address) or not _is_surely_public(address)


def _is_surely_public(address: IPv4Address | IPv6Address) -> bool:
    return address in ipaddress.ip_network("2a00::/12" if address.version == 6 else "8.0.0.0/8")


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_public_as_the_one_it_holds(address: IPv4Address) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        embedded = IPv6Address(int(IPv6Address(prefix)) + int(address))
        assert is_public(embedded) == is_public(address)
