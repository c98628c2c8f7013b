"""A receiver of webhooks, as a process of its own, that fails half of the time and writes down what comes.

Every message becomes a line of its log: which hook it came to, its id, its body, and what became of it.
"""

import argparse
import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import TextIO

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

# So often in a row at most does one message fail: fewer than there are tries.
MOST_FAILURES = 5
# How it fails, and how often relative to each other. A silence lasts longer than anybody waits.
_FAILURES = {"error": 10, "dropped": 10, "redirect": 10, "busy": 10, "silent": 1}
_SILENCE_SECONDS = 5.0


class UnreliableReceiver:
    """Accepts half of the messages, and each in the end."""

    def __init__(self, secret: str, log: TextIO) -> None:
        self._webhook = Webhook(secret)
        self._log = log
        self._failures: Counter[str] = Counter()
        self._random = random.Random(4)

    async def take(self, request: web.Request) -> web.StreamResponse:
        message_id, body = request.headers["webhook-id"], await request.text()
        try:
            self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError):
            fate = "forged"
        else:
            fate = self._fate(message_id)
        self._log.write(json.dumps([request.match_info["hook"], message_id, body, fate]) + "\n")
        return await self._answer(request, fate)

    def _fate(self, message_id: str) -> str:
        if self._failures[message_id] >= MOST_FAILURES or self._random.random() < 0.5:
            self._failures[message_id] = 0
            return "accepted"
        self._failures[message_id] += 1
        [fate] = self._random.choices(list(_FAILURES), list(_FAILURES.values()))
        return fate

    async def _answer(self, request: web.Request, fate: str) -> web.StreamResponse:
        match fate:
            case "forged":
                return web.Response(status=401)
            case "error":
                return web.Response(status=500, text="Something broke.")
            case "dropped":
                assert request.transport is not None
                request.transport.abort()
            case "redirect":
                return web.Response(status=302, headers={"Location": "/elsewhere"})
            case "busy":
                return web.Response(status=429, headers={"Retry-After": "1"})
            case "silent":
                await asyncio.sleep(_SILENCE_SECONDS)
        return web.Response()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    with given.log.open("w", buffering=1) as log:
        application = web.Application()
        receiver = UnreliableReceiver(os.environ["WEBHOOK_SECRET"], log)
        application.router.add_post("/{hook}", receiver.take)
        web.run_app(application, host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
