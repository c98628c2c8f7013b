"""The one tree of errors: what went wrong, how HTTP says it, and whether trying again can help."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class DeployError(Exception):
    """Base of every error that a user can meet.

    `message` is shown to people and says what to do next; it never holds a secret.
    `details` is for machines. `code` and `status` are the API's (DESIGN part 5);
    `retryable` says whether the same step may succeed when it is simply tried again.
    `log` is what a program wrote before it failed, its secrets masked: the operation shows it below the
    message, and it never enters a workflow's history.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None, log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.log = log

    @property
    def in_full(self) -> str:
        """The message, and below it the log."""
        return f"{self.message}\n{self.log}" if self.log else self.message


# What a request can get wrong.


class RequestError(DeployError):
    """The request cannot be carried out as it stands; trying again changes nothing."""

    retryable = False


class Unauthorized(RequestError):
    """No valid API key or access token came with the request."""

    code = "unauthorized"
    status = 401


class Forbidden(RequestError):
    """The key's level or the user's role does not include the permission that `message` names."""

    code = "forbidden"
    status = 403


class NotFound(RequestError):
    """The resource does not exist, or it belongs to another organization."""

    code = "not_found"
    status = 404


class MethodNotAllowed(RequestError):
    """The path does not support the method; `Allow` lists the methods that it supports."""

    code = "method_not_allowed"
    status = 405


class Conflict(RequestError):
    """The request conflicts with existing data, such as a name in use."""

    code = "conflict"
    status = 409


class InvalidState(Conflict):
    """The resource's state does not allow the action."""

    code = "invalid_state"


class OperationInProgress(Conflict):
    """Another operation is running on the resource; `details.operation_id` is its ID."""

    code = "operation_in_progress"


class OperationClosed(Conflict):
    """The operation has ended, or a deletion by force has taken its place: its steps must not go on."""

    code = "operation_closed"


class IdempotencyInProgress(Conflict):
    """A request with the same `Idempotency-Key` is in progress: retry after `Retry-After` seconds."""

    code = "idempotency_in_progress"
    retryable = True
    # In seconds: a request takes less, but for those whose database hangs.
    retry_after: ClassVar[int] = 1


class PreconditionFailed(RequestError):
    """The resource has changed and no longer matches `If-Match`: read it again."""

    code = "precondition_failed"
    status = 412


class QuotaExceeded(RequestError):
    """The organization has reached a limit; `details.limit` is the limit."""

    code = "quota_exceeded"
    status = 402


class PayloadTooLarge(RequestError):
    """The body is larger than `DEPLOYERP_MAX_BODY_BYTES` allows."""

    code = "payload_too_large"
    status = 413


class ValidationFailed(RequestError):
    """A field is invalid; `details` is `{"fields": [{"field", "message"}]}`."""

    code = "validation_error"
    status = 422


class IdempotencyKeyReused(RequestError):
    """The `Idempotency-Key` was used for another request: use a new key for each request."""

    code = "idempotency_key_reused"
    status = 422


class RateLimitExceeded(RequestError):
    """Too many requests in the current window: retry after `Retry-After` seconds."""

    code = "rate_limit_exceeded"
    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, details={"retry_after": retry_after})
        self.retry_after = retry_after


class Unavailable(DeployError):
    """A component that the request needs, such as the database, does not respond: retry later."""

    code = "unavailable"
    status = 503


# What the outside world can get wrong.


class UpstreamError(DeployError):
    """Something outside the control plane failed; usually worth another try."""

    code = "upstream_error"
    status = 502


class ProviderError(UpstreamError):
    """The cloud refused or failed a call."""

    code = "provider_error"


class ProviderRefused(ProviderError):
    """The cloud will give the same answer again: quota, unknown size."""

    code = "provider_refused"
    retryable = False


class CredentialsRefused(ProviderRefused):
    """The cloud does not accept the provider's credentials, or they may not do what is needed."""

    code = "credentials_refused"


class NodeGone(ProviderRefused):
    """The provider says that the server's machine does not exist: delete the server by force."""

    code = "node_gone"


class ProviderThrottled(ProviderError):
    """The cloud asks to wait; `retry_after` is in seconds and becomes the next try's delay."""

    code = "provider_throttled"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, details={"retry_after": retry_after})
        self.retry_after = retry_after


class HostUnreachable(UpstreamError):
    """The server does not answer over SSH (yet)."""

    code = "host_unreachable"


class HostKeyMismatch(UpstreamError):
    """The machine that answered is not the server we made: nothing was sent to it."""

    code = "host_key_mismatch"
    retryable = False


class HostAuthenticationFailed(UpstreamError):
    """The server refused our SSH key."""

    code = "host_authentication_failed"
    retryable = False


class HostForwardingForbidden(UpstreamError):
    """The server's sshd forbids the forwarding through which its Docker engine is reached."""

    code = "host_forwarding_forbidden"
    retryable = False


class CommandFailed(UpstreamError):
    """A command on a server ended with a non-zero exit status; `details` holds the end of its output."""

    code = "command_failed"


class ContainerFailed(UpstreamError):
    """A container of the instance ended each time it was started; the operation shows the end of its log."""

    code = "container_failed"
    retryable = False


class DiskFull(UpstreamError):
    """A disk of the server has no space left: free some or enlarge it, then retry the operation."""

    code = "disk_full"
    retryable = False


class EngineError(UpstreamError):
    """The Docker engine of a server failed a call."""

    code = "engine_error"


class EngineRefused(EngineError):
    """The engine will give the same answer again: a bad parameter, a missing container or network."""

    code = "engine_refused"
    retryable = False


class PortInUse(EngineError):
    """Something else on the server has a port that a container needs: stop it, then retry the operation."""

    code = "port_in_use"
    retryable = False


class ProxyError(UpstreamError):
    """A server's Caddy does not answer or refuses a change."""

    code = "proxy_error"


class EndpointUnreachable(UpstreamError):
    """A webhook receiver does not answer."""

    code = "endpoint_unreachable"


class DecryptionFailed(DeployError):
    """A sealed secret does not open with any of the configured keys."""

    code = "decryption_failed"
    retryable = False


class ImageUnavailable(UpstreamError):
    """No registry serves the image and the control plane's own engine does not have it."""

    code = "image_unavailable"
    retryable = False


class ImageRefused(UpstreamError):
    """The image holds another major version of PostgreSQL than the one that made the instance's data."""

    code = "image_refused"
    retryable = False


class NotHealthy(UpstreamError):
    """The thing runs but does not answer as it should (yet)."""

    code = "not_healthy"


class AddressRefused(DeployError):
    """A user-given URL leads to an address that the control plane must not call."""

    code = "address_refused"
    status = 422
    retryable = False


def tree(root: type[DeployError] = DeployError) -> Iterator[type[DeployError]]:
    """Every error, parents first: what one says of its code counts before what its children say."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def codes() -> frozenset[str]:
    """Every code of the tree."""
    return frozenset(each.code for each in tree())
