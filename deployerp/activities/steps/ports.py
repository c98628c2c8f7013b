"""A port of a server that a program outside Docker has, told with the program's name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from deployerp.core.errors import DeployError, PortInUse
from deployerp.drivers.engine.ports import port_in_use
from deployerp.drivers.server.host import Host


@asynccontextmanager
async def naming_holders(host: Host) -> AsyncIterator[None]:
    """Raises `PortInUse` that names the program, in place of one that knows of no container."""
    try:
        yield
    except PortInUse as error:
        if error.details["holder"] is not None:
            raise
        programs: list[str] = []
        # It only explains another error, which must not be lost when the server cannot be asked.
        with suppress(DeployError):
            programs = await host.listening_programs(error.details["port"])
        if not programs:
            raise
        container, port = error.details["container"], error.details["port"]
        raise port_in_use(container, port, f"the program {', '.join(programs)}") from error
