"""Access tokens: what is issued is taken, and nothing else."""

import json
from base64 import urlsafe_b64decode
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from deployerp.core.errors import DecryptionFailed
from deployerp.core.secrets import new_encryption_key
from deployerp.database.base import utc_now
from deployerp.domain.access_tokens import AccessTokens, Claims, TokenRefused, key_name_of
from tests.forged_tokens import AUDIENCE, FORGERIES, ISSUER, Forge

OLD, NEW = new_encryption_key(), new_encryption_key()
USER, ORGANIZATION = uuid4(), uuid4()


def tokens(*keys: str, minutes: int = 15) -> AccessTokens:
    secret = [SecretStr(key) for key in keys]
    return AccessTokens(secret, issuer=ISSUER, audience=AUDIENCE, minutes=minutes)


def taken(by: AccessTokens, token: str) -> Claims:
    """As a request does it: by the name of the key, and the token's own words alone."""
    kid = key_name_of(token)
    if not by.are_named(kid):
        raise TokenRefused("unknown")
    return by.verify(token, kid)


def test_what_is_issued_is_taken_and_holds_no_role() -> None:
    now = utc_now()
    token = tokens(NEW).issue(USER, ORGANIZATION, now)
    claims = taken(tokens(NEW), token)
    assert (claims.user_id, claims.organization_id) == (USER, ORGANIZATION)
    assert claims.expires_at == int((now + timedelta(minutes=15)).timestamp())
    told = json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))
    assert told.keys() == {"iss", "aud", "sub", "org", "iat", "nbf", "exp", "jti"}


def test_a_token_that_is_made_by_the_book_is_the_same() -> None:
    forge = Forge(NEW, USER, ORGANIZATION)
    assert taken(tokens(NEW), forge.token()).user_id == USER
    assert taken(tokens(OLD, NEW), forge.token(claims={"nbf": forge.claims()["nbf"] + 2})).user_id == USER
    assert key_name_of(tokens(NEW).issue(USER, ORGANIZATION)) == forge.kid


def test_two_tokens_of_one_moment_differ() -> None:
    issuer, now = tokens(NEW), utc_now()
    assert issuer.issue(USER, ORGANIZATION, now) != issuer.issue(USER, ORGANIZATION, now)


def test_a_new_key_in_front_signs_and_the_old_one_is_still_taken() -> None:
    before = tokens(OLD).issue(USER, ORGANIZATION)
    rotated = tokens(NEW, OLD)
    assert taken(rotated, before).user_id == USER
    after = rotated.issue(USER, ORGANIZATION)
    assert taken(tokens(NEW), after).user_id == USER
    with pytest.raises(TokenRefused):
        taken(tokens(OLD), after)
    with pytest.raises(TokenRefused):
        taken(tokens(NEW), before)


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tokens_are_refused(name: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        taken(tokens(NEW, OLD), FORGERIES[name](Forge(NEW, USER, ORGANIZATION)))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["none", "RS256 under our kid", "HS512 under our kid"])
def test_another_algorithm_is_refused_for_being_another(name: str) -> None:
    # And not because the signature happens to be wrong or the key to be short.
    with pytest.raises(TokenRefused, match="alg value is not allowed"):
        taken(tokens(NEW), FORGERIES[name](Forge(NEW, USER, ORGANIZATION)))


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=200), st.integers(0, 2))
def test_no_text_is_taken_or_breaks_anything(text: str, part: int) -> None:
    parts = Forge(NEW, USER, ORGANIZATION).token().split(".")
    parts[part] = text
    for token in (text, ".".join(parts)):
        with pytest.raises(TokenRefused):
            taken(tokens(NEW), token)


def test_a_token_of_another_key_set_is_verified_under_no_key_of_ours() -> None:
    forge = Forge(NEW, USER, ORGANIZATION)
    other = Forge(OLD, USER, ORGANIZATION)
    # Named as one key and signed with the other, though both are ours.
    with pytest.raises(TokenRefused):
        taken(tokens(NEW, OLD), other.token({"kid": forge.kid}))


def test_without_keys_nothing_is_issued() -> None:
    with pytest.raises(DecryptionFailed, match="DEPLOYERP_ENCRYPTION_KEYS"):
        tokens()


@pytest.mark.fault("20")
@pytest.mark.parametrize(("claim", "seconds"), [("exp", -60), ("nbf", 60), ("iat", 60)])
def test_a_refusal_for_a_clock_names_the_skew_that_is_allowed(claim: str, seconds: int) -> None:
    forge = Forge(NEW, USER, ORGANIZATION)
    with pytest.raises(TokenRefused, match="clocks may differ by 5 seconds"):
        taken(tokens(NEW), forge.token(claims={claim: forge.claims()["iat"] + seconds}))
