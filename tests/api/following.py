"""Server-sent events, as a client reads them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.conftest import Client


@dataclass(frozen=True)
class Told:
    """An event of a stream."""

    id: str | None
    event: str
    data: dict[str, Any]

    @property
    def sequence(self) -> int:
        return int(self.data["sequence"])


@dataclass
class Stream:
    """One that is open."""

    answer: httpx.Response
    lines: AsyncIterator[str]

    async def block(self) -> list[str] | None:
        """The lines up to an empty one; None at the end."""
        block: list[str] = []
        async for line in self.lines:
            if not line:
                return block
            block.append(line)
        assert block == [], "it was cut off in the middle of an event"
        return None

    async def events(self) -> AsyncIterator[Told]:
        """Until it ends."""
        while (block := await self.block()) is not None:
            fields = dict(line.split(": ", 1) for line in block)
            if "data" in fields:
                yield Told(fields.get("id"), fields["event"], json.loads(fields["data"]))

    async def next(self, count: int) -> list[Told]:
        """So many events."""
        events = self.events()
        return [await anext(events) for _ in range(count)]

    async def sequences(self, count: int) -> list[int]:
        return [each.sequence for each in await self.next(count)]


@asynccontextmanager
async def following(
    client: Client, address: str | None = None, query: str = "", **headers: str
) -> AsyncIterator[Stream]:
    """The stream of events, at an address or by way of the client itself."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    bearer = {"Authorization": f"Bearer {client.token}"}
    async with (
        httpx.AsyncClient(base_url=address or client.http.base_url, timeout=120) as http,
        http.stream("GET", f"/v1/events/stream?{query}", headers=bearer | given) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield Stream(answer, answer.aiter_lines())
