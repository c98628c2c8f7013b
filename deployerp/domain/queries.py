"""What requests must learn from outside at once: the messages of a worker's query service."""

from dataclasses import dataclass, field

from deployerp.core.secrets import Vault

# A request that asks waits no longer than this.
TIMEOUT_SECONDS = 15.0
# Of a query and of its answer.
MAX_BYTES = 1_048_576


@dataclass(frozen=True)
class CheckCredentials:
    """Whether a cloud takes these credentials. The answer is null."""

    kind: str
    sealed_credentials: str = field(repr=False)


def path_of(query: type[object]) -> str:
    """Where the service answers a kind of query."""
    return f"/queries/{query.__name__}"


def tokens_of(vault: Vault) -> list[str]:
    """The tokens that the service takes; the API sends the last, which processes know through a rotation."""
    return vault.derive("queries")
