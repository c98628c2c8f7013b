"""The answer to a request with an `Idempotency-Key` is kept for a day and given again to its caller."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
from fastapi import Request, Response
from sqlalchemy import BigInteger, bindparam, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.access.callers import Caller
from deployerp.api.contract.envelope import encode
from deployerp.api.contract.errors import invalid_field
from deployerp.core.errors import IdempotencyInProgress, IdempotencyKeyReused
from deployerp.core.secrets import Vault
from deployerp.database.base import utc_now
from deployerp.database.statements import Statement, put, run
from deployerp.domain.idempotency import KEPT_FOR, IdempotencyRecord

HEADER = "Idempotency-Key"
MAX_LENGTH = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")
# What else belongs to an answer; the rest is made anew for every request.
_KEPT_HEADERS = ("content-type", "etag", "location")


_KEPT = Statement(
    select(*IdempotencyRecord.__table__.columns).where(  # type: ignore[attr-defined]
        col(IdempotencyRecord.organization_id) == bindparam("organization_id"),
        col(IdempotencyRecord.key) == bindparam("key"),
    )
)
_CLAIM = Statement(
    select(func.pg_try_advisory_xact_lock(bindparam("number", type_=BigInteger)).label("claimed"))
)


@dataclass(frozen=True)
class IdempotentRequest:
    """A request with a key, which is its caller's own: others may choose the same."""

    caller: Caller
    given: str
    fingerprint: str

    @property
    def organization_id(self) -> UUID:
        return self.caller.organization_id

    @property
    def key(self) -> str:
        """What it is kept under: of a user or an API key, not of the organization."""
        return f"{self.caller.actor_id}:{self.given}"

    async def replay(self, session: AsyncSession, vault: Vault) -> Response | None:
        """The answer that was given before, if there is one.

        Raises `IdempotencyInProgress` and `IdempotencyKeyReused`.
        """
        if session.get_bind().dialect.name == "postgresql":
            await self._claim(session)
        found = await run(session, _KEPT, {"organization_id": self.organization_id, "key": self.key})
        if not found:
            return None
        kept = found[0]
        if kept["expires_at"] <= utc_now():
            await session.execute(delete(IdempotencyRecord).where(col(IdempotencyRecord.id) == kept["id"]))
            return None
        if kept["fingerprint"] != self.fingerprint:
            raise IdempotencyKeyReused(
                f"This {HEADER} came with another request before: use a new key for a new request."
            )
        return _restore(vault.open_mapping(kept["sealed_answer"]), kept["status"])

    async def _claim(self, session: AsyncSession) -> None:
        """Holds the key until the transaction ends; on SQLite writers wait for each other anyway."""
        number = int.from_bytes(hashlib.sha256(f"{self.organization_id}{self.key}".encode()).digest()[:8])
        # A bigint of PostgreSQL's has a sign.
        if not (await run(session, _CLAIM, {"number": number - 2**63}))[0]["claimed"]:
            raise IdempotencyInProgress(
                f"A request with this {HEADER} is being carried out: send it again in a moment."
            )

    async def keep(
        self, session: AsyncSession, vault: Vault, response: Response, secrets: Sequence[str]
    ) -> None:
        """Adds the answer, without these fields of its data, to the transaction of its change."""
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        body = base64.b64encode(_without(bytes(response.body), secrets)).decode()
        await put(
            session,
            IdempotencyRecord(
                organization_id=self.organization_id,
                key=self.key,
                fingerprint=self.fingerprint,
                status=response.status_code,
                sealed_answer=vault.seal_mapping({"headers": headers, "body": body}),
                expires_at=utc_now() + KEPT_FOR,
            ),
        )


def _without(body: bytes, secrets: Sequence[str]) -> bytes:
    """An answer to be given again: what is shown once is null, and a note says so."""
    if not secrets:
        return body
    answer = orjson.loads(body)
    shown = [name for name in secrets if answer["data"].get(name) is not None]
    if not shown:
        return body
    answer["data"] |= dict.fromkeys(shown)
    named = " and ".join(f"`{name}`" for name in shown)
    answer["meta"]["note"] = f"{named} was shown once, in the first answer, and is not kept: make a new one."
    return encode(answer)


async def read_idempotency_key(request: Request, caller: Caller) -> IdempotentRequest | None:
    """The key of the request, if it has one. Raises `ValidationFailed` for one that is not sane."""
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    # What may stand around a value is no part of it (RFC 9110, 5.5).
    key = keys[0].strip(" \t")
    if len(keys) > 1:
        raise invalid_field(HEADER, "must be given once")
    if not _KEY.fullmatch(key):
        raise invalid_field(HEADER, f"must be 1 to {MAX_LENGTH} visible ASCII characters, without spaces")
    told = hashlib.sha256()
    scope = request.scope
    # The query as it came: a URL is text, and bytes that are none must not break it.
    parts = (request.method.encode(), scope["path"].encode(), scope["query_string"], await request.body())
    for part in parts:
        # With its length: no two requests run together to the same text.
        told.update(len(part).to_bytes(8))
        told.update(part)
    return IdempotentRequest(caller, key, told.hexdigest())


def _restore(kept: dict[str, object], status: int) -> Response:
    headers = {str(name): str(value) for name, value in dict(kept["headers"]).items()}  # type: ignore[call-overload]
    body = base64.b64decode(str(kept["body"]))
    return Response(body, status, headers | {"Idempotent-Replayed": "true"})
