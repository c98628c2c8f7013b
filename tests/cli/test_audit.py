"""`deployerp audit verify`: a line for each organization, and an exit status for what runs it."""

import asyncio
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from deployerp.cli.app import app, main
from deployerp.database.sessions import open_database, session_factory, tenant_transaction
from deployerp.database.tenancy import Tenant
from deployerp.domain.audit.log import AuditRecord, append
from deployerp.domain.organizations import Organization


async def fill(url: str, **entries: int) -> None:
    """Organizations by their slugs, each with so many entries."""
    engine = open_database(url)
    sessions = session_factory(engine)
    deed = AuditRecord(
        actor_type="system", actor_id=None, action="test", resource_type="server", request_id="r"
    )
    for slug, count in entries.items():
        organization = Organization(name=slug, slug=slug)
        async with sessions() as session, session.begin():
            session.add(organization)
        async with tenant_transaction(sessions, Tenant(organization.id)) as session:
            for _ in range(count):
                await append(session, organization.id, deed)
    await engine.dispose()


async def cut(url: str, slug: str, sequence: int) -> None:
    """Takes an entry out, as somebody can who is master of the database."""
    engine = open_database(url)
    delete = (
        f"DELETE FROM audit_log WHERE sequence = {sequence}"
        f" AND organization_id = (SELECT id FROM organizations WHERE slug = '{slug}')"
    )
    armour = (
        "SET LOCAL session_replication_role = replica"
        if engine.dialect.name == "postgresql"
        else "DROP TRIGGER audit_log_no_delete"
    )
    async with engine.begin() as connection:
        for statement in (armour, delete):
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
def three_logs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DEPLOYERP_DATABASE_URL", database_url)
    asyncio.run(fill(database_url, beta=3, alpha=2, gamma=0))
    return database_url


def verify(*options: str) -> tuple[int, list[str]]:
    ended = CliRunner().invoke(app, ["audit", "verify", *options])
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    return ended.exit_code, [line.partition(", hash")[0] for line in ended.stdout.splitlines()]


def test_whole_logs_are_told_with_their_last_hashes(three_logs: str) -> None:
    expected = [
        "alpha: OK, 2 entries verified",
        "beta: OK, 3 entries verified",
        "gamma: OK, 0 entries verified",
    ]
    assert verify() == (0, expected)
    shown = CliRunner().invoke(app, ["audit", "verify"]).stdout
    assert f"gamma: OK, 0 entries verified, hash {'0' * 64}\n" in shown


def test_a_broken_log_is_told_and_does_not_hide_the_others(three_logs: str) -> None:
    asyncio.run(cut(three_logs, "alpha", 2))
    expected = [
        "alpha: BROKEN at entry 2: it is missing",
        "beta: OK, 3 entries verified",
        "gamma: OK, 0 entries verified",
    ]
    assert verify() == (1, expected)


def test_one_organization_is_asked_about_alone(three_logs: str) -> None:
    asyncio.run(cut(three_logs, "alpha", 1))
    assert verify("--organization", "beta") == (0, ["beta: OK, 3 entries verified"])
    assert verify("--organization", "alpha") == (1, ["alpha: BROKEN at entry 1: it is missing"])


def test_an_unknown_organization_is_an_error(
    three_logs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["deployerp", "audit", "verify", "--organization", "delta"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: Organization delta does not exist")


def test_the_embedded_control_plane_is_found_by_its_folder(migrated_sqlite: Path, tmp_path: Path) -> None:
    copied = shutil.copy(migrated_sqlite, tmp_path / "deployerp.db")
    asyncio.run(fill(f"sqlite+aiosqlite:///{copied}", alpha=1))
    assert verify("--home", str(tmp_path)) == (0, ["alpha: OK, 1 entries verified"])
