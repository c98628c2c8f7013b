"""A receiver of webhooks in a process of its own: it takes everything, and remembers when it came."""

import argparse
import time

from aiohttp import web

_ID = "webhook-id"


async def _take(request: web.Request) -> web.Response:
    # The clock of the machine, which the process that sends has too.
    request.app["came"].append((request.match_info["number"], request.headers[_ID], time.monotonic()))
    await request.read()
    return web.Response()


async def _tell(request: web.Request) -> web.Response:
    """How many have come, or with `all` the endpoint, the id and the time of each."""
    came = request.app["came"]
    return web.json_response(came if "all" in request.query else len(came))


async def _forget(request: web.Request) -> web.Response:
    request.app["came"].clear()
    return web.Response()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    application = web.Application()
    application["came"] = []
    application.router.add_post("/hook/{number}", _take)
    application.router.add_get("/came", _tell)
    application.router.add_delete("/came", _forget)
    web.run_app(application, host="127.0.0.1", port=parser.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
