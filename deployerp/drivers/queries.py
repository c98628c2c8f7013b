"""The worker's query service as the API sees it."""

from typing import Any

import aiohttp
from pydantic import TypeAdapter

from deployerp.core.errors import DeployError, ProviderThrottled, RequestError, Unavailable, tree
from deployerp.core.secrets import Vault
from deployerp.domain.queries import MAX_BYTES, TIMEOUT_SECONDS, path_of, tokens_of
from deployerp.drivers.web.bodies import read_body

_CLASSES = {error.code: error for error in reversed(list(tree()))}
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_NO_WORKER = (
    "No worker answers, and this request needs one. Start a worker (`deployerp worker`), check"
    " DEPLOYERP_WORKER_URL, then send the request again."
)


class Queries:
    """Sends queries to a worker; `close` it at the end."""

    def __init__(self, url: str, vault: Vault) -> None:
        self._url = url.rstrip("/")
        self._token = tokens_of(vault)[-1]
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, query: object) -> Any:
        """Returns the answer as parsed JSON. Raises the error of the worker, and `Unavailable`."""
        try:
            async with self._opened().post(
                f"{self._url}{path_of(type(query))}",
                data=TypeAdapter(type(query)).dump_json(query),
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                answer = _OBJECT.validate_json(await read_body(response, MAX_BYTES))
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(_NO_WORKER) from error
        if status != 200:
            raise _error_of(answer)
        return answer["result"]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        return self._session


def _error_of(answer: dict[str, Any]) -> DeployError:
    error, message = _CLASSES.get(answer.get("code", ""), Unavailable), answer.get("message", _NO_WORKER)
    if issubclass(error, RequestError):
        # Whoever sent the request to the API cannot correct it.
        return Unavailable(f"The worker refused the query. {message}")
    if issubclass(error, ProviderThrottled):
        return error(message, retry_after=answer.get("retry_after", 0))
    return error(message)
