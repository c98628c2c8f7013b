"""The floor that the API is measured against: the same rows through FastAPI, asyncpg and orjson alone.

Nothing is around them: nobody is authenticated, nothing is counted, checked, sealed, logged or kept.
"""

import argparse
import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import OperationOrder, workflow_id
from deployerp.drivers.temporal import Temporal

PER_PAGE = 20
_COLUMNS = """
    id::text AS id, name, slug, server_id::text AS "serverId", odoo_version AS "odooVersion",
    odoo_edition AS "odooEdition", environment_type AS "environmentType", hostname, url, status,
    status_message AS "statusMessage", health, deployed_at AS "deployedAt", created_at AS "createdAt",
    updated_at AS "updatedAt"
"""
_FROM = f"SELECT {_COLUMNS} FROM instances"  # noqa: S608  (nothing of a client's is in it)
_LIST = f"{_FROM} WHERE organization_id = $1 AND deleted_at IS NULL"
# `id` alone would be the text that is told, which no index has in order.
_ORDER = f"ORDER BY created_at DESC, instances.id DESC LIMIT {PER_PAGE}"
PAGE = f"{_LIST} {_ORDER}"
PAGE_AFTER = f"{_LIST} AND (created_at, instances.id) < ($2, $3) {_ORDER}"
FILTERED = f"{_LIST} AND status = $2 AND server_id = $3 {_ORDER}"
ONE = f"{_FROM} WHERE organization_id = $1 AND id = $2 AND deleted_at IS NULL"
INSERT_INSTANCE = """
    INSERT INTO instances (id, created_at, updated_at, organization_id, server_id, name, slug, odoo_version,
        odoo_edition, environment_type, hostname, status, state_changed_at, health, sealed_env_vars,
        sealed_database_password, sealed_master_password, sealed_admin_password)
    VALUES ($1, $2, $2, $3, $4, $5, $6, $7, 'community', 'production', $8, 'pending', $2, 'unknown',
        $9, $9, $9, $9)
    RETURNING
"""
INSERT_OPERATION = """
    INSERT INTO operations (id, created_at, updated_at, organization_id, resource_type, resource_id, action,
        workflow_id, resource_name, resource_slug, force, parameters, state, requested_by)
    VALUES ($1, $2, $2, $3, 'instance', $4, 'deploy', $5, $6, $7, false, '{}', 'pending', $3)
"""
RAISE_HEAD = """
    INSERT INTO audit_heads (organization_id, sequence, hash) VALUES ($1, 1, $2)
    ON CONFLICT (organization_id) DO UPDATE SET sequence = audit_heads.sequence + 1, hash = excluded.hash
    RETURNING sequence
"""
INSERT_ENTRY = """
    INSERT INTO audit_log (id, created_at, organization_id, sequence, actor_type, actor_id, action,
        resource_type, resource_id, operation_id, address, request_id, after, previous_hash, hash)
    VALUES ($1, $2, $3, $4, 'api_key', $3, 'create_instance', 'instance', $5, $6, '127.0.0.1', $7, $8, $9, $9)
"""
_SEALED = "gAAAAAB" + "x" * 113


class InstanceBody(BaseModel):
    name: str
    slug: str
    server_id: UUID
    odoo_version: str


app = FastAPI(openapi_url=None)


def _answer(data: Any, status: int = 200) -> Response:
    return Response(
        orjson.dumps({"data": data}, option=orjson.OPT_UTC_Z), status, media_type="application/json"
    )


@app.get("/readyz")
async def get_readiness() -> dict[str, str]:
    return {"status": "ready"}


async def _rows(request: Request, query: str, *values: object) -> Response:
    pool: asyncpg.Pool = request.app.state.pool
    return _answer([dict(row) for row in await pool.fetch(query, *values)])


@app.get("/instances")
async def list_instances(request: Request, organization_id: UUID) -> Response:
    return await _rows(request, PAGE, organization_id)


@app.get("/instances/after")
async def list_instances_after(
    request: Request, organization_id: UUID, created_at: datetime, id: UUID
) -> Response:
    return await _rows(request, PAGE_AFTER, organization_id, created_at, id)


@app.get("/instances/filtered")
async def list_filtered_instances(
    request: Request, organization_id: UUID, status: str, server_id: UUID
) -> Response:
    return await _rows(request, FILTERED, organization_id, status, server_id)


@app.get("/instances/{id}")
async def get_instance(request: Request, organization_id: UUID, id: UUID) -> Response:
    row = await request.app.state.pool.fetchrow(ONE, organization_id, id)
    return _answer(dict(row)) if row else Response(status_code=404)


@app.post("/instances")
async def create_instance(
    request: Request, organization_id: UUID, body: InstanceBody, start: bool = False
) -> Response:
    """The rows that the API writes: instance, operation, audit entry, the head of the audit log."""
    instance_id, operation_id, now = uuid7(), uuid7(), datetime.now(UTC)
    after = body.model_dump_json()
    seal = hashlib.sha256(after.encode()).hexdigest()
    pool: asyncpg.Pool = request.app.state.pool
    async with pool.acquire() as connection, connection.transaction():
        instance = await connection.fetchrow(
            *(
                INSERT_INSTANCE + _COLUMNS,
                instance_id,
                now,
                organization_id,
                body.server_id,
                body.name,
                body.slug,
            ),
            *(body.odoo_version, f"{body.slug}.localhost", _SEALED),
        )
        await connection.execute(
            *(INSERT_OPERATION, operation_id, now, organization_id, instance_id),
            *(workflow_id("instance", "deploy", body.slug, str(operation_id)), body.name, body.slug),
        )
        sequence = await connection.fetchval(RAISE_HEAD, organization_id, seal)
        await connection.execute(
            *(INSERT_ENTRY, uuid7(), now, organization_id, sequence, instance_id, operation_id),
            *(operation_id.hex, after, seal),
        )
    if start:
        order = OperationOrder(
            str(operation_id),
            str(organization_id),
            "instance",
            str(instance_id),
            "deploy",
            workflow_id=workflow_id("instance", "deploy", body.slug, str(operation_id)),
            resource_name=body.name,
            resource_slug=body.slug,
        )
        _start_workflow(request.app, order)
    return _answer(dict(instance), 202)


def _start_workflow(app: FastAPI, order: OperationOrder) -> None:
    """After the answer, as the API does."""
    task = asyncio.create_task(app.state.temporal.offer_operation(order))
    # The loop holds its tasks only weakly.
    app.state.tasks.add(task)
    task.add_done_callback(app.state.tasks.discard)


async def _keep(_connection: object) -> None:
    """Nothing is set on a connection, so nothing has to be reset: that would be one more round trip."""


async def serve(dsn: str, config: uvicorn.Config) -> None:
    app.state.tasks = set()
    app.state.temporal = await Temporal.open(Settings())
    # No more connections than are ever busy: small pools beat large ones.
    async with asyncpg.create_pool(dsn, min_size=4, max_size=4, reset=_keep) as app.state.pool:
        await uvicorn.Server(config).serve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    config = uvicorn.Config(
        app,
        port=given.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve(given.dsn, config))


if __name__ == "__main__":
    main()
