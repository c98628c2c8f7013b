"""How people reach an instance: its scheme, its address, and its route in the server's Caddy."""

from deployerp.activities.steps.instance_parts import odoo_container
from deployerp.core.fields import needs_certificate
from deployerp.domain.instances import Instance
from deployerp.domain.servers import Server
from deployerp.drivers import caddy
from deployerp.drivers.odoo import odoo


def route_of(instance: Instance) -> caddy.Route:
    container = odoo_container(instance)
    workers = odoo.CAPACITIES[instance.environment_type].workers
    return caddy.Route(
        id=str(instance.id),
        hosts=[instance.hostname],
        upstream=f"{container}:{odoo.HTTP_PORT}",
        websocket_upstream=f"{container}:{odoo.WEBSOCKET_PORT}" if workers else None,
        https=scheme_of(instance) == "https",
    )


def scheme_of(instance: Instance) -> str:
    # No authority certifies names under localhost, and browsers trust them without.
    return "https" if needs_certificate(instance.hostname) else "http"


def url_of(instance: Instance, server: Server) -> str:
    """Where people find the instance: the server's public port is part of it unless it is the usual one."""
    scheme = scheme_of(instance)
    port, usual = (server.https_port, 443) if scheme == "https" else (server.http_port, 80)
    return f"{scheme}://{instance.hostname}" + ("" if port == usual else f":{port}")
