"""Passwords of people: argon2id, and the rules for a new one."""

import asyncio
import base64
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST, LONGEST = 12, 256
_hasher = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4)
# Each hash takes 64 MiB and all the cores that it gets: more at once would starve everything else.
_threads = ThreadPoolExecutor(2, thread_name_prefix="argon2")


def _text(length: int) -> str:
    return base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")


# Takes as long as a real one, and no password fits: whoever asks learns nothing of who there is.
_NOBODYS_HASH = (
    f"$argon2id$v=19$m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}"
    f"${_text(_hasher.salt_len)}${_text(_hasher.hash_len)}"
)


def check_password(password: str, email: str) -> None:
    """The rules of a new password. Raises ValueError with the one that it breaks."""
    if not SHORTEST <= len(_normal(password)) <= LONGEST:
        raise ValueError(f"must have {SHORTEST} to {LONGEST} characters")
    if _normal(password).casefold() == email.casefold():
        raise ValueError("must not be the e-mail address")


async def hashed(password: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(_threads, _hash, password)


async def fits(password: str, kept: str | None) -> bool:
    """Whether a password has this hash; without a hash it takes as long, and the answer is no."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, _verify, password, kept or _NOBODYS_HASH)


def is_outdated(kept: str) -> bool:
    """Whether a hash was made with other parameters than today's, so that it is to be made anew."""
    return _hasher.check_needs_rehash(kept)


def _hash(password: str) -> str:
    return _hasher.hash(_normal(password))


def _verify(password: str, kept: str) -> bool:
    try:
        return _hasher.verify(kept, _normal(password))
    except (VerificationError, InvalidHashError):
        return False


def _normal(password: str) -> str:
    # Keyboards and systems differ in how they compose an é.
    return unicodedata.normalize("NFC", password)
