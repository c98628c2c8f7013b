"""Queries: what the API asks of a worker while a request waits."""

from dataclasses import dataclass, field

from deployerp.core.secrets import Vault

# How long a request waits for an answer.
TIMEOUT_SECONDS = 15.0
# The largest query, and the largest answer.
MAX_BYTES = 1_048_576


@dataclass(frozen=True)
class CheckCredentials:
    """Whether a cloud accepts these credentials. The answer is null; a refusal is an error."""

    kind: str
    sealed_credentials: str = field(repr=False)


def path_of(query: type[object]) -> str:
    """The URL path at which the service answers queries of this type."""
    return f"/queries/{query.__name__}"


def tokens_of(vault: Vault) -> list[str]:
    """The tokens that the service accepts, one for each encryption key.

    The API sends the last: while keys are rotated, every process still has the oldest.
    """
    return vault.derive("queries")
