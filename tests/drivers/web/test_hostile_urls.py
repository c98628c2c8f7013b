"""URLs of users must not reach what only the control plane can, whatever they look like and lead to.

A trap listens at every address of this machine. What is asserted of the sender is that it opened no
connection at all, as the kernel was told, and that nothing came to the trap.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from deployerp.core.errors import AddressRefused, EndpointUnreachable
from deployerp.drivers.web.http import WebhookSender
from deployerp.drivers.web.urls import Network, check_url
from tests.drivers.web.hostile_urls import CAUGHT, FORMS, HOSTS, NAMES, PUBLIC
from tests.drivers.web.receivers import LOOPBACK, Handler, answering, receiver, recorded_connects, resolving

THIS_MACHINE: list[Network] = [IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")]
ALL_FORMS = [(rule, url) for rule, urls in FORMS.items() for url in urls]
ALL_HOSTS = [host for hosts in HOSTS.values() for host in hosts]


@dataclass
class Trap:
    """What listens at `port` of every address, and from where it was called."""

    port: int
    caught: list[object] = field(default_factory=list)


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    trap = Trap(listening.getsockname()[1])

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trap.caught.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(serve, sock=listening)
    yield trap
    server.close()
    await server.wait_closed()


@pytest.fixture
def connects() -> Iterator[list[object]]:
    with recorded_connects() as record:
        yield record


# What the proofs stand on.


@pytest.mark.parametrize("host", CAUGHT)
async def test_who_does_not_look_is_recorded_and_caught(
    host: str, trap: Trap, connects: list[object]
) -> None:
    reader, writer = await asyncio.open_connection(host, trap.port)
    assert await reader.read() == b""
    writer.close()
    assert len(trap.caught) == len(connects) == 1


async def test_the_sender_is_recorded_and_caught_where_it_may_call(
    trap: Trap, connects: list[object]
) -> None:
    with pytest.raises(EndpointUnreachable):
        await WebhookSender(THIS_MACHINE).send(f"http://localhost:{trap.port}/", b"", {})
    assert len(trap.caught) == len(connects) > 0


def test_there_are_enough_of_them() -> None:
    assert len({url for _, url in ALL_FORMS}) == len(ALL_FORMS)
    assert len(set(ALL_HOSTS)) == len(ALL_HOSTS)
    assert len(ALL_FORMS) + len(ALL_HOSTS) + len(NAMES) >= 200


# One by one, each for its own reason.


@pytest.mark.parametrize(("rule", "url"), ALL_FORMS)
async def test_a_hostile_form_is_refused_without_a_question(
    rule: str, url: str, trap: Trap, connects: list[object]
) -> None:
    url = url.replace("{port}", str(trap.port))
    with pytest.raises(ValueError, match=rule) as complaint:
        check_url(url)
    assert str(complaint.value).startswith("must ")
    resolve, asked = resolving([PUBLIC])
    # An operator's networks are no way around the form.
    with pytest.raises(AddressRefused, match=rule):
        await WebhookSender(THIS_MACHINE, resolve=resolve).send(url, b"", {})
    assert (asked, connects, trap.caught) == ([], [], [])


@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
@pytest.mark.parametrize("host", ALL_HOSTS)
async def test_a_hostile_address_is_refused(
    host: str, scheme: str, trap: Trap, connects: list[object]
) -> None:
    url = check_url(f"{scheme}://{host}:{trap.port}/latest/meta-data/")
    with pytest.raises(AddressRefused, match="DEPLOYERP_ALLOWED_NETWORKS"):
        await WebhookSender().send(url, b"", {})
    assert (connects, trap.caught) == ([], [])


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_with_any_hostile_address_is_refused(
    name: str, trap: Trap, connects: list[object]
) -> None:
    resolve, asked = resolving(NAMES[name])
    with pytest.raises(AddressRefused) as caught:
        await WebhookSender(resolve=resolve).send(check_url(f"http://{name}:{trap.port}/"), b"", {})
    assert (asked, connects, trap.caught) == ([name], [], [])
    # What the inner network is like is the operator's business.
    assert not any(address in caught.value.message.replace(name, "") for address in NAMES[name])


async def test_nothing_of_them_all_arrives(trap: Trap, connects: list[object]) -> None:
    hostile = [url.replace("{port}", str(trap.port)) for _, url in ALL_FORMS]
    hostile += [f"http://{host}:{trap.port}/" for host in ALL_HOSTS]
    async with WebhookSender() as sender:
        for url in hostile:
            with pytest.raises(AddressRefused):
                await sender.send(url, b"", {})
    # Connections are accepted in their order: before this one there was none.
    _, writer = await asyncio.open_connection("127.0.0.1", trap.port)
    own = writer.get_extra_info("sockname")
    while not trap.caught:
        await asyncio.sleep(0)
    writer.close()
    assert [caught[:2] for caught in trap.caught] == [(f"::ffff:{own[0]}", own[1])]  # type: ignore[index]
    assert connects == [("127.0.0.1", trap.port)]


# Names that change, from attempt to attempt and in between.


def named(name: str, reached: list[str]) -> Handler:
    async def handle(request: Any) -> Any:
        reached.append(name)
        return await answering()(request)

    return handle


async def test_a_name_that_is_rebound_is_called_where_it_was_checked(connects: list[object]) -> None:
    reached: list[str] = []
    resolve, asked = resolving(["127.0.0.2"], ["127.0.0.1"])
    sender = WebhookSender([IPv4Network("127.0.0.2/32")], resolve=resolve)
    async with (
        receiver(named("outer", reached), "127.0.0.2") as port,
        receiver(named("inner", reached), "127.0.0.1", port=port),
    ):
        assert (await sender.send(f"http://rebound.test:{port}/", b"", {})).status == 200
        assert (asked, reached, connects) == (["rebound.test"], ["outer"], [("127.0.0.2", port)])
        # The next attempt asks again, learns the new address and refuses it.
        with pytest.raises(AddressRefused):
            await sender.send(f"http://rebound.test:{port}/", b"", {})
    assert (asked, reached, len(connects)) == (["rebound.test"] * 2, ["outer"], 1)


async def test_nobody_asks_again_between_check_and_connection(
    monkeypatch: pytest.MonkeyPatch, connects: list[object]
) -> None:
    asked: list[str] = []
    getaddrinfo = socket.getaddrinfo

    def rebinding(host: str, *arguments: Any, **named_arguments: Any) -> Any:
        if host != "rebound.test":
            return getaddrinfo(host, *arguments, **named_arguments)
        asked.append(host)
        return getaddrinfo("127.0.0.2" if len(asked) == 1 else "127.0.0.1", *arguments, **named_arguments)

    reached: list[str] = []
    async with (
        receiver(named("outer", reached), "127.0.0.2") as port,
        receiver(named("inner", reached), "127.0.0.1", port=port),
    ):
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        sender = WebhookSender([IPv4Network("127.0.0.2/32")])
        assert (await sender.send(f"http://rebound.test:{port}/", b"", {})).status == 200
        assert (asked, reached, connects) == (["rebound.test"], ["outer"], [("127.0.0.2", port)])
        with pytest.raises(AddressRefused):
            await sender.send(f"http://rebound.test:{port}/", b"", {})
    assert (asked, reached, len(connects)) == (["rebound.test"] * 2, ["outer"], 1)


async def test_a_kept_connection_is_no_way_around_the_check(connects: list[object]) -> None:
    answers = ["127.0.0.2"], ["127.0.0.2"], ["127.0.0.1"], ["127.0.0.3"], ["127.0.0.2"]
    reached: list[str] = []
    resolve, asked = resolving(*answers)
    allowed = [IPv4Network("127.0.0.2/31")]
    async with (
        receiver(named("two", reached), "127.0.0.2") as port,
        receiver(named("three", reached), "127.0.0.3", port=port),
        WebhookSender(allowed, resolve=resolve) as sender,
    ):

        async def send() -> None:
            await sender.send(f"http://rebound.test:{port}/", b"", {})

        await send()
        await send()
        # It would reach the old address still, but the name does not lead there any more.
        with pytest.raises(AddressRefused):
            await send()
        await send()
        await send()
    assert len(asked) == len(answers)
    assert reached == ["two", "two", "three", "two"]
    assert connects == [("127.0.0.2", port), ("127.0.0.3", port)]


async def test_an_answer_that_is_no_address_is_none(connects: list[object]) -> None:
    resolve, _ = resolving(["127.1"])
    with pytest.raises(EndpointUnreachable, match="has no address"):
        await WebhookSender(THIS_MACHINE, resolve=resolve).send("http://odd.test/", b"", {})
    assert connects == []


# Receivers that lead on.


@pytest.mark.parametrize("header", ["Location", "Refresh", "Alt-Svc", "Content-Location", "Link"])
@pytest.mark.parametrize("status", [200, 300, 301, 302, 303, 305, 307, 308])
async def test_an_answer_leads_nowhere(status: int, header: str, trap: Trap, connects: list[object]) -> None:
    inner = f"http://127.0.0.1:{trap.port}/"
    values = {"Refresh": f"0; url={inner}", "Alt-Svc": f'h2="127.0.0.1:{trap.port}"', "Link": f"<{inner}>"}
    async with receiver(answering(status, headers={header: values.get(header, inner)})) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    assert (answer.status, connects, trap.caught) == (status, [("127.0.0.1", port)], [])


# What an operator allows.


@pytest.mark.parametrize("host", ["127.0.0.2", "10.0.0.1", "[::1]", "[64:ff9b::127.0.0.1]", "[fe80::1]"])
async def test_only_the_allowed_network_is_allowed(host: str, trap: Trap, connects: list[object]) -> None:
    allowed: list[Network] = [LOOPBACK, IPv6Network("fd00::/8")]
    with pytest.raises(AddressRefused):
        await WebhookSender(allowed).send(f"http://{host}:{trap.port}/", b"", {})
    assert (connects, trap.caught) == ([], [])


async def test_a_mapped_address_is_allowed_as_the_one_in_it() -> None:
    async with receiver(answering()) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://[::ffff:127.0.0.1]:{port}/", b"", {})
    assert answer.status == 200


async def test_a_zone_is_never_allowed(connects: list[object]) -> None:
    addresses: Sequence[str] = ["fe80::1%1"]
    resolve, _ = resolving(addresses)
    with pytest.raises(AddressRefused):
        await WebhookSender([IPv6Network("fe80::/10")], resolve=resolve).send("http://zone.test/", b"", {})
    assert connects == []
