"""How people reach an instance: its scheme, its address, and its route in the server's Caddy."""

from sqlalchemy import Select, select
from sqlmodel import col

from deployerp.activities.steps.instance_parts import odoo_container
from deployerp.core.fields import needs_certificate
from deployerp.domain.instances import INSTANCE, Instance
from deployerp.domain.operations.lifecycles import DELETED
from deployerp.domain.releases import Release, active_release
from deployerp.domain.servers import Server
from deployerp.drivers import caddy
from deployerp.drivers.odoo import odoo


def routed_instances(server: Server) -> Select[Instance, Release]:
    """The instances of a server that have a route, whether they run or not, and the release it leads to.

    One that is being deployed counts: its own step may have made the route already.
    """
    deploying = INSTANCE.actions["deploy"].transitional
    deleting = INSTANCE.actions["delete"].transitional
    return (
        select(Instance, Release)
        .join(Release, active_release(col(Instance.id)))
        .where(
            col(Instance.server_id) == server.id,
            col(Instance.deployed_at).is_not(None) | (col(Instance.status) == deploying),
            col(Instance.status).not_in((deleting, DELETED)),
        )
        .order_by(col(Instance.id))
    )


def route_of(instance: Instance, release: Release) -> caddy.Route:
    container = odoo_container(release)
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
