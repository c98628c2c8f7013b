"""Real receivers of webhooks on this machine, and a record of whom the process connects to."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Network
from typing import Any

from aiohttp import web

LOOPBACK = IPv4Network("127.0.0.1/32")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# Every connect of this process passes here, whichever library makes it; a hook cannot be taken off again.
_records: list[list[object]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        for record in _records:
            record.append(arguments[1])


sys.addaudithook(_audit)


@contextmanager
def recorded_connects() -> Iterator[list[object]]:
    """The addresses that sockets of this process are connected to meanwhile, as the kernel gets them."""
    record: list[object] = []
    _records.append(record)
    yield record
    _records.remove(record)


@asynccontextmanager
async def receiver(handler: Handler, host: str = "127.0.0.1", **site: Any) -> AsyncIterator[int]:
    """A real HTTP server at `host`; gives its port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    port = site.pop("port", 0)
    await web.TCPSite(runner, host, port, **site).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def raw_receiver(converse: Converse) -> AsyncIterator[int]:
    """A server that holds `converse` over each connection; gives its port."""
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        with suppress(asyncio.IncompleteReadError):
            await converse(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    for writer in open_writers:
        writer.close()
    server.close()
    await server.wait_closed()


def saying(answer: bytes) -> Converse:
    """Says `answer`, whatever it is asked, and then nothing."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return converse


def answering(status: int = 200, **answer: Any) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, **answer)

    return handle


def resolving(*answers: Sequence[str]) -> tuple[Resolve, list[str]]:
    """A name server that gives one answer after the other and stays with the last; and what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked
