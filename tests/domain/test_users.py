"""Users whose e-mail addresses the database keeps apart."""

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.organizations import Organization
from deployerp.domain.users import User


@pytest.mark.fault("18")
async def test_an_address_is_unique_once_it_is_verified_and_within_its_organization_before(
    sessions: SessionFactory,
) -> None:
    acme, beta = (Organization(name=slug, slug=slug) for slug in ("acme", "beta"))
    verified: dict[str, Any] = {"email_verified_at": utc_now()}
    at_acme, at_beta = ({"home_organization_id": each.id} for each in (acme, beta))

    async def add(**values: Any) -> None:
        async with sessions() as session, session.begin():
            session.add(User(email="ada@example.com", name="Ada", **values))

    async with sessions() as session, session.begin():
        session.add_all([acme, beta])
    for values in (verified, at_acme, at_beta):
        await add(**values)
    for values in (verified, at_acme, {}, verified | at_acme):
        with pytest.raises(IntegrityError):
            await add(**values)
