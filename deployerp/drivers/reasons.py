"""What a library says of a failure, fit to be shown."""


def reason_of(error: BaseException) -> str:
    """The kind of failure and what is said of it, without paths: those of the control plane help nobody."""
    said = error.strerror or "" if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {said}".removesuffix(": ")


def connection_failure(error: BaseException) -> str:
    """Why a connection failed: the system's own words, which are below the exceptions of the libraries."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror.lower()
        inner = inner.__cause__ or inner.__context__
    return "it did not answer in time" if "Timeout" in type(error).__name__ else "the connection failed"
