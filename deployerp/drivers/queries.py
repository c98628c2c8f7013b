"""The worker's query service as the API sees it."""

from typing import Any

import aiohttp
from pydantic import TypeAdapter

from deployerp.core.errors import DeployError, ProviderThrottled, RequestError, Unavailable, tree
from deployerp.core.secrets import Vault
from deployerp.domain.queries import MAX_BYTES, TIMEOUT_SECONDS, path_of, tokens_of

_CLASSES = {error.code: error for error in reversed(list(tree()))}
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_NO_WORKER = (
    "No worker answers, and this request needs one. Start a worker (`deployerp worker`), check"
    " DEPLOYERP_WORKER_URL, then send the request again."
)


class Queries:
    """Asks a worker what a request must learn from outside at once; `close` it at the end."""

    def __init__(self, url: str, vault: Vault) -> None:
        self._url = url.rstrip("/")
        self._token = tokens_of(vault)[-1]
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, query: object) -> Any:
        """The answer, as JSON has it. Raises the error that the worker tells, and `Unavailable`."""
        try:
            async with self._opened().post(
                f"{self._url}{path_of(type(query))}",
                data=TypeAdapter(type(query)).dump_json(query),
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                # One byte more tells that there is more.
                text = await response.content.read(MAX_BYTES + 1)
                told = _OBJECT.validate_json(text)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(_NO_WORKER) from error
        if status != 200:
            raise _error_of(told)
        return told["result"]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        return self._session


def _error_of(told: dict[str, Any]) -> DeployError:
    error, message = _CLASSES.get(told.get("code", ""), Unavailable), told.get("message", _NO_WORKER)
    if issubclass(error, RequestError):
        # Ours to put right, not of whoever has sent the request.
        return Unavailable(f"The worker refused the query. {message}")
    if issubclass(error, ProviderThrottled):
        return error(message, retry_after=float(told.get("retry_after") or 0))
    return error(message)
