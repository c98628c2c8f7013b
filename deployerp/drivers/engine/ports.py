"""Ports of a server that a container should get and somebody else has."""

import re

from deployerp.core.errors import PortInUse

_TAKEN = ("port is already allocated", "address already in use")
# `Bind for 0.0.0.0:80`, `listen tcp4 0.0.0.0:80`, `bind host port for 0.0.0.0:80:172.18.0.2:80/tcp`
_PORT = re.compile(r"(?:Bind for |listen tcp\d? |host port for )\S*?:(\d+)\b")


def port_in(said: str) -> int | None:
    """The port that an engine says is taken; None where its failure is another one."""
    if not any(phrase in said for phrase in _TAKEN):
        return None
    found = _PORT.search(said)
    return int(found[1]) if found else None


def port_in_use(container: str, port: int, holder: str | None) -> PortInUse:
    """`holder` is who has the port, in words; None where that is not known."""
    return PortInUse(
        f"Container {container} cannot be started: its port {port} of the server is held by"
        f" {holder or 'a program outside Docker'}. Stop that for good, or have it use another port,"
        " then retry the operation.",
        details={"container": container, "port": port, "holder": holder},
    )
