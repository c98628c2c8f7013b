"""What a library says of a failure, fit to be shown."""


def reason_of(error: BaseException) -> str:
    """The kind of failure and what is said of it, without paths: those of the control plane help nobody."""
    said = error.strerror or "" if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {said}".removesuffix(": ")
