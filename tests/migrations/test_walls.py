"""Row level security on PostgreSQL: what a tenant's transaction sees and writes, whatever it asks for."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Table, Uuid, bindparam, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deployerp.database.base import new_id, utc_now
from deployerp.database.reads import Query, open_reader
from deployerp.database.sessions import (
    SessionFactory,
    as_control_plane,
    session_factory,
    tenant_transaction,
)
from deployerp.database.tenancy import TENANT_ROLE, TENANT_SETTING
from deployerp.database.tenancy import Tenant as Owner
from deployerp.domain.instances import Instance
from deployerp.domain.organizations import Organization
from deployerp.domain.servers import Server
from deployerp.domain.tables import metadata
from deployerp.domain.users import Member, User
from tests.migrations.tenants import CLOSED, VISIBLE, Tenant, refused, rows, settle

# What only workers and the control plane itself write.
READ_ONLY = {"organizations", "users", "operation_steps", "webhook_attempts"}
ADDED_TO = {"audit_log", "events", "releases"}
DELETABLE = {"members", "idempotency_records", "operation_holds"}


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """SQLite has no such walls."""
    return postgres_url


@pytest.fixture
async def ours(sessions: SessionFactory) -> Tenant:
    return await settle(sessions)


@pytest.fixture
async def theirs(sessions: SessionFactory) -> Tenant:
    return await settle(sessions)


def table_of(name: str) -> Table:
    return metadata.tables[name]


def mine(name: str) -> str:
    """The condition of a row's being the tenant's, in terms that row level security has no part in."""
    through = {
        "organizations": "id = '{}'",
        "users": "id IN (SELECT user_id FROM members WHERE organization_id = '{}')",
        "operation_steps": "operation_id IN (SELECT id FROM operations WHERE organization_id = '{}')",
        "webhook_attempts": (
            "delivery_id IN (SELECT id FROM webhook_deliveries WHERE organization_id = '{}')"
        ),
    }
    return through.get(name, "organization_id = '{}'")


class Enough(Exception):
    """Ends a transaction of which nothing is to stay."""


@asynccontextmanager
async def taken_back(sessions: SessionFactory, organization_id: UUID) -> AsyncIterator[AsyncSession]:
    with suppress(Enough):
        async with tenant_transaction(sessions, Owner(organization_id)) as session:
            yield session
            raise Enough


async def test_every_table_is_filled_in_these_tests(ours: Tenant) -> None:
    by_others = {"audit_log", "audit_heads", "installations"}
    filled = {record.__tablename__ for record in ours.records} | by_others
    assert filled == set(metadata.tables)


@pytest.mark.parametrize("name", sorted(metadata.tables))
async def test_every_table_stands_behind_a_wall(database: AsyncEngine, name: str) -> None:
    async with database.connect() as connection:
        query = (
            "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = CAST(:table AS regclass)"
        )
        assert (await connection.execute(text(query), {"table": name})).one() == (True, True)
        query = "SELECT policyname, roles::text[], cmd FROM pg_policies WHERE tablename = :table"
        policies = {
            policy.policyname: (policy.roles, policy.cmd)
            for policy in await connection.execute(text(query), {"table": name})
        }
        query = "SELECT has_any_column_privilege(:role, CAST(:table AS regclass), 'SELECT, INSERT, UPDATE')"
        granted = await connection.scalar(text(query), {"role": TENANT_ROLE, "table": name})
    expected = {"control_plane": (["postgres"], "ALL")}
    if name not in CLOSED:
        expected["tenant"] = ([TENANT_ROLE], "ALL")
    assert policies == expected
    assert granted is (name not in CLOSED)


@pytest.mark.parametrize("name", VISIBLE)
async def test_a_tenant_may_do_with_a_table_what_requests_need(database: AsyncEngine, name: str) -> None:
    expected = {"SELECT"}
    if name not in READ_ONLY:
        expected |= {"INSERT", "UPDATE"}
    if name in ADDED_TO:
        expected -= {"UPDATE"}
    if name in DELETABLE:
        expected |= {"DELETE"}
    query = text(
        "SELECT privilege_type FROM information_schema.role_table_grants"
        " WHERE grantee = :role AND table_name = :table"
    )
    async with database.connect() as connection:
        found = await connection.scalars(query, {"role": TENANT_ROLE, "table": name})
        assert set(found) == expected


async def test_a_tenant_sees_its_own_rows_alone(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    for tenant in (ours, theirs):
        for name in VISIBLE:
            async with sessions() as session:
                expected = await rows(session, name, mine(name).format(tenant.id))
            async with tenant_transaction(sessions, Owner(tenant.id)) as session:
                assert await rows(session, name) == expected, name
            assert len(expected) == 1, name


@pytest.mark.parametrize("name", sorted(CLOSED))
async def test_a_tenant_does_not_reach_what_is_not_for_tenants(
    sessions: SessionFactory, ours: Tenant, name: str
) -> None:
    async with taken_back(sessions, ours.id) as session:
        await refused(session, text(f"SELECT FROM {name}"), "permission denied")


@pytest.mark.parametrize("setting", [None, ""])
async def test_a_tenant_without_an_organization_sees_nothing(
    sessions: SessionFactory, ours: Tenant, setting: str | None
) -> None:
    async with sessions() as session:
        await session.execute(text(f"SET LOCAL ROLE {TENANT_ROLE}"))
        if setting is not None:
            await session.execute(text(f"SET LOCAL {TENANT_SETTING} = '{setting}'"))
        for name in VISIBLE:
            assert await rows(session, name) == [], name


@pytest.mark.parametrize("name", sorted(set(VISIBLE) - READ_ONLY))
async def test_a_tenant_cannot_write_rows_of_another(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant, name: str
) -> None:
    table = table_of(name)
    async with sessions() as session:
        query = select(table).where(table.c.organization_id == theirs.id)
        theirs_row = (await session.execute(query)).mappings().one()
    # A row that would be good if it were ours: only the wall is against it.
    copy = dict(theirs_row) | ({"id": new_id()} if "id" in theirs_row else {})
    words = "violates row-level security policy"
    async with taken_back(sessions, ours.id) as session:
        await refused(session, insert(table).values(copy), words)
    if name in ADDED_TO:
        return
    async with taken_back(sessions, ours.id) as session:
        change = update(table).values(organization_id=theirs.id)
        await refused(session, change, words)
    async with tenant_transaction(sessions, Owner(ours.id)) as session:
        column = next(c for c in table.columns if not c.primary_key and c.name != "organization_id")
        of_theirs = table.c.organization_id == theirs.id
        changed = await session.execute(update(table).where(of_theirs).values({column.name: column}))
        assert changed.rowcount == 0  # type: ignore[attr-defined]
    async with sessions() as session:
        assert (await session.execute(query)).mappings().one() == theirs_row


@pytest.mark.parametrize("name", sorted(READ_ONLY))
async def test_a_tenant_cannot_write_what_workers_write(
    sessions: SessionFactory, ours: Tenant, name: str
) -> None:
    column = table_of(name).c.created_at
    for statement in (update(table_of(name)).values({column: column}), table_of(name).delete()):
        async with taken_back(sessions, ours.id) as session:
            await refused(session, statement, "permission denied")


@pytest.mark.parametrize("name", sorted(DELETABLE))
async def test_a_tenant_deletes_its_own_rows_alone(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant, name: str
) -> None:
    async with tenant_transaction(sessions, Owner(ours.id)) as session:
        await session.execute(table_of(name).delete())
    async with sessions() as session:
        left = await session.scalars(select(table_of(name).c.organization_id))
        assert left.all() == [theirs.id]


@pytest.mark.parametrize("name", sorted(set(VISIBLE) - DELETABLE))
async def test_a_tenant_cannot_delete_what_is_kept(sessions: SessionFactory, ours: Tenant, name: str) -> None:
    for statement in (f"DELETE FROM {name}", f"TRUNCATE {name}"):
        async with taken_back(sessions, ours.id) as session:
            await refused(session, text(statement), "permission denied")


async def test_a_query_that_has_lost_its_filter_leaks_nothing(
    postgres_url: str, database: AsyncEngine, sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    async with tenant_transaction(sessions, Owner(ours.id)) as session:
        assert [found.id for found in await session.scalars(select(Instance))] == [ours.of("instances").id]
        assert await session.get(Instance, theirs.of("instances").id) is None
        assert await session.scalar(select(func.count()).select_from(Server)) == 1


async def test_a_read_that_has_lost_its_filter_leaks_nothing(
    postgres_url: str, database: AsyncEngine, sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    asked_for = bindparam("organization_id", type_=Uuid())
    reader = open_reader(postgres_url, database, sessions)
    try:
        for name in VISIBLE:
            # It knows whose rows it should read, and reads all that it can see.
            query = Query(select(table_of(name)).where(asked_for.is_not(None)))
            for tenant in (ours, theirs):
                found = await reader.rows(Owner(tenant.id), query, {})
                async with sessions() as session:
                    expected = await rows(session, name, mine(name).format(tenant.id))
                assert len(found) == 1, name
                assert {str(row.get("id")) for row in found} == {str(row.get("id")) for row in expected}
    finally:
        await reader.close()


async def test_a_user_of_two_organizations_is_seen_by_both_and_others_by_neither(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    shared = ours.of("users")
    async with sessions() as session, session.begin():
        session.add(Member(organization_id=theirs.id, user_id=shared.id, role="viewer"))
        session.add(User(email="nobody@example.com", email_verified_at=utc_now(), name="nobody"))
    seen = []
    for tenant in (ours, theirs):
        async with tenant_transaction(sessions, Owner(tenant.id)) as session:
            seen.append(set(await session.scalars(select(User.id))))  # type: ignore[call-overload]
            # What the shared user is elsewhere is not told.
            assert set(await session.scalars(select(Member.organization_id))) == {tenant.id}  # type: ignore[call-overload]
    assert seen == [{shared.id}, {shared.id, theirs.of("users").id}]


async def test_a_connection_forgets_whose_it_was(postgres_url: str) -> None:
    engine = create_async_engine(postgres_url, pool_size=1, max_overflow=0)
    sessions = session_factory(engine)
    tenant = await settle(sessions)
    look = text(
        "SELECT pg_backend_pid(), session_user = current_user AND current_setting('role') = 'none',"
        f" nullif(current_setting('{TENANT_SETTING}', true), '')"
    )

    async def seen(session: AsyncSession) -> Sequence[Any]:
        return (await session.execute(look)).one()

    async def fail() -> None:
        async with tenant_transaction(sessions, Owner(tenant.id)) as session:
            assert (await seen(session))[1:] == (False, str(tenant.id))
            raise ZeroDivisionError

    async with tenant_transaction(sessions, Owner(tenant.id)) as session:
        pid, plain, organization = await seen(session)
    assert (plain, organization) == (False, str(tenant.id))
    with pytest.raises(ZeroDivisionError):
        await fail()
    async with sessions() as session:
        assert await seen(session) == (pid, True, None)
        assert await session.scalar(select(func.count()).select_from(Organization)) == 1
    await engine.dispose()


async def test_tenants_at_once_on_few_connections_stay_apart(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    async def look(tenant: Tenant) -> None:
        async with tenant_transaction(sessions, Owner(tenant.id)) as session:
            assert [found.id for found in await session.scalars(select(Server))] == [tenant.of("servers").id]
            await session.execute(text("SELECT pg_sleep(0)"))
            assert (await session.scalars(select(table_of("organizations").c.id))).all() == [tenant.id]

    await asyncio.gather(*(look(tenant) for tenant in [ours, theirs] * 20))


async def test_the_control_plane_acts_within_a_tenants_transaction_and_steps_back(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    made = User(email="new@example.com", email_verified_at=utc_now(), name="new")
    async with taken_back(sessions, ours.id) as session:
        async with as_control_plane(session):
            assert await session.scalar(select(func.count()).select_from(User)) == 2
            session.add(made)
        # The wall is up again, and the organization still the same.
        assert [found.id for found in await session.scalars(select(User))] == [ours.of("users").id]
        session.add(Member(organization_id=ours.id, user_id=made.id, role="viewer"))
        await session.flush()
        assert await session.scalar(select(func.count()).select_from(User)) == 2
        await refused(session, update(User).values(name="x"), "permission denied")
    async with sessions() as session:
        assert await session.get(User, made.id) is None


async def test_a_listing_goes_through_the_same_index_as_without_the_wall(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant
) -> None:
    fill = text(
        """
        INSERT INTO instances SELECT (jsonb_populate_record(i, jsonb_build_object(
            'id', gen_random_uuid(),
            'hostname', i.hostname || n,
            'created_at', i.created_at + n * interval '1 s'
        ))).*
        FROM instances i, generate_series(1, 5000) n WHERE i.organization_id = :organization OR n <= 500
        """
    )
    async with sessions() as session, session.begin():
        await session.execute(fill, {"organization": theirs.id})
        await session.execute(text("ANALYZE instances"))
    explain = text(
        "EXPLAIN (FORMAT JSON) SELECT id, name FROM instances WHERE organization_id = :organization"
        " AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT 20"
    )

    async def plan(session: AsyncSession) -> dict[str, Any]:
        found = await session.scalar(explain, {"organization": ours.id})
        return found[0]["Plan"]  # type: ignore[no-any-return]

    async with sessions() as session:
        without = await plan(session)
    async with tenant_transaction(sessions, Owner(ours.id)) as session:
        behind = await plan(session)
    assert "ix_instances_listing" in indexes(without)
    assert indexes(behind) == indexes(without)
    assert behind["Total Cost"] < without["Total Cost"] * 1.1


def indexes(plan: dict[str, Any]) -> list[str]:
    below = [name for each in plan.get("Plans", ()) for name in indexes(each)]
    return [plan["Index Name"], *below] if "Index Name" in plan else below


@pytest.mark.parametrize("name", ["instances", "servers"])
async def test_a_search_finds_nothing_of_another(
    sessions: SessionFactory, ours: Tenant, theirs: Tenant, name: str
) -> None:
    """The function runs as the owner of the table, which sees every row."""
    query = text(f"SELECT count(*) FROM search_{name}(:organization, '%')")
    async with tenant_transaction(sessions, Owner(ours.id)) as session:
        found = [await session.scalar(query, {"organization": each.id}) for each in (ours, theirs)]
    assert found == [1, 0]
    async with sessions() as session:
        # Without a tenant there is nothing of anybody's.
        assert await session.scalar(query, {"organization": ours.id}) == 0


@pytest.mark.parametrize("name", ["instances", "servers"])
async def test_the_statement_of_a_search_fits_its_index(
    sessions: SessionFactory, ours: Tenant, name: str
) -> None:
    async with sessions() as session:
        connection = await session.connection()
        source = text("SELECT prosrc FROM pg_proc WHERE proname = :name")
        body = await session.scalar(source, {"name": f"search_{name}"})
        statement = body.replace("organization =", "$1 =").replace("= organization", "= $1")
        # Of the few rows here it would read all, or take the index of another column.
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        for index in table_of(name).indexes:
            await session.execute(text(f"DROP INDEX {index.name}"))
        await session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        prepare = f"PREPARE search (uuid, text) AS {statement.replace('LIKE pattern', 'LIKE $2')}"
        await connection.exec_driver_sql(prepare)
        plan = await connection.exec_driver_sql(f"EXPLAIN EXECUTE search ('{ours.id}', '%acme%')")
        told = "\n".join(plan.scalars())
        condition = rf"ix_{name}_search.*Index Cond: \(\(organization_id = \$1\) AND .* ~~ \$2"
        assert re.search(condition, told, re.DOTALL), told
        await connection.exec_driver_sql("DEALLOCATE search")
        await session.rollback()


@pytest.mark.parametrize("name", ["instances", "servers"])
async def test_only_tenants_may_call_a_search_and_its_search_path_is_fixed(
    sessions: SessionFactory, name: str
) -> None:
    query = text("SELECT prosecdef, proconfig, proacl::text FROM pg_proc WHERE oid = :name ::regprocedure")
    async with sessions() as session:
        found = await session.execute(query, {"name": f"search_{name}(uuid, text)"})
        runs_as_owner, settings, rights = found.one()
        owner = await session.scalar(text("SELECT current_user"))
    assert runs_as_owner
    assert settings == ["search_path=pg_catalog, pg_temp"]
    assert rights == f"{{{owner}=X/{owner},{TENANT_ROLE}=X/{owner}}}"
