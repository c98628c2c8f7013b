"""The query service: a worker answers queries of the API over HTTP.

The API itself connects to no cloud and no server. Queries and answers never enter a Temporal history.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from deployerp.core.errors import DeployError, ProviderThrottled, Unauthorized, Unavailable, ValidationFailed
from deployerp.core.secrets import Vault, same
from deployerp.domain.installations import INSTALLATION_TAG
from deployerp.domain.queries import MAX_BYTES, CheckCredentials, path_of, tokens_of
from deployerp.drivers.clouds.cloud import Clouds

log = structlog.get_logger()
Answer = Callable[[Any], Awaitable[object]]


class Answers:
    """Answers to the queries of `domain.queries`."""

    def __init__(self, clouds: Clouds, vault: Vault) -> None:
        self._clouds = clouds
        self._vault = vault

    def by_query(self) -> Mapping[type, Answer]:
        return {CheckCredentials: self.check_credentials}

    async def check_credentials(self, query: CheckCredentials) -> None:
        """Makes a read-only call: it lists the nodes with a tag that no node has.

        Raises the errors of `Cloud`.
        """
        cloud = self._clouds.open(query.kind, self._vault.open_mapping(query.sealed_credentials))
        await cloud.find_nodes({INSTALLATION_TAG: "none"})


@asynccontextmanager
async def serve_queries(answers: Answers, vault: Vault, host: str, port: int) -> AsyncIterator[int]:
    """Answers queries as long as the block lasts; gives the port, which `port` 0 leaves to the system.

    Workers on one machine share a port. Raises `Unavailable` when it cannot be had.
    """
    app = web.Application(client_max_size=MAX_BYTES)
    tokens = tokens_of(vault)
    for query, answer in answers.by_query().items():
        app.router.add_post(path_of(query), _handler(query, answer, tokens))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_port=True)
        try:
            await site.start()
        except OSError as error:
            raise Unavailable(
                f"The worker cannot listen on {host}:{port} for queries of the API ({error.strerror}):"
                " set DEPLOYERP_WORKER_HOST or DEPLOYERP_WORKER_PORT."
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _handler(query: type, answer: Answer, tokens: list[str]) -> Callable[[web.Request], Awaitable[Any]]:
    form: TypeAdapter[Any] = TypeAdapter(query)

    async def handle(request: web.Request) -> web.Response:
        try:
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not any(same(sent, token) for token in tokens):
                raise Unauthorized("The token of the query service is wrong: the encryption keys differ.")
            return web.json_response({"result": await answer(form.validate_json(await request.read()))})
        except ValidationError:
            error: DeployError = ValidationFailed("The query is not one of this version.")
        except DeployError as failure:
            error = failure
        except Exception:
            log.exception("a query failed", query=query.__name__)
            error = DeployError("The query failed for a reason that the worker's log tells.")
        answer_body: dict[str, object] = {"code": error.code, "message": error.message}
        if isinstance(error, ProviderThrottled):
            answer_body["retry_after"] = error.retry_after
        return web.json_response(answer_body, status=error.status)

    return handle
