"""The first tables, who may do what with their rows, and what keeps the audit log append-only"""

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from deployerp.migrations.append_only import protect_audit_log, unprotect_audit_log
from deployerp.migrations.row_policies import (
    OWN_ROWS,
    close_to_tenants,
    ensure_tenant_role,
    row_policy,
    tenant_id,
)
from deployerp.migrations.search import create_search, drop_search, ensure_search_extensions

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")

# What a tenant may do with which rows. Where rows follow those of another table, the policy of that table
# is enough: a sub-select sees only the tenant's rows.
_TENANT_MAY = {
    "organizations": ("SELECT, UPDATE (event_sequence, updated_at)", f"id = {tenant_id()}"),
    "members": ("SELECT, INSERT, UPDATE, DELETE", OWN_ROWS),
    "users": ("SELECT", "EXISTS (SELECT FROM members WHERE members.user_id = users.id)"),
    "api_keys": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "providers": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "servers": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "instances": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "releases": ("SELECT, INSERT", OWN_ROWS),
    "operations": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "operation_holds": ("SELECT, INSERT, UPDATE, DELETE", OWN_ROWS),
    "operation_steps": ("SELECT", "EXISTS (SELECT FROM operations WHERE operations.id = operation_id)"),
    "events": ("SELECT, INSERT", OWN_ROWS),
    "webhook_endpoints": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "webhook_deliveries": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "webhook_attempts": (
        "SELECT",
        "EXISTS (SELECT FROM webhook_deliveries WHERE webhook_deliveries.id = delivery_id)",
    ),
    "idempotency_records": ("SELECT, INSERT, UPDATE, DELETE", OWN_ROWS),
    "audit_heads": ("SELECT, INSERT, UPDATE", OWN_ROWS),
    "audit_log": ("SELECT, INSERT", OWN_ROWS),
}
# Tables whose `q` goes through an index, and the columns that it searches.
_SEARCHED = {"instances": ("name", "slug", "hostname"), "servers": ("name", "address")}
_CLOSED = ("identities", "installations", "rate_windows", "refresh_tokens", "set_password_tokens")


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    _create_tables()
    installations = sa.table(
        "installations", *(sa.column(name) for name in ("id", "created_at", "updated_at"))
    )
    now = sa.func.now()
    op.execute(
        sa.insert(installations).values(id=sa.literal(uuid4(), sa.Uuid()), created_at=now, updated_at=now)
    )
    protect_audit_log()
    if op.get_bind().dialect.name == "postgresql":
        # A server belongs to one organization: without this the planner multiplies both selectivities.
        op.execute(
            "CREATE STATISTICS instances_server_of_organization (dependencies)"
            " ON organization_id, server_id FROM instances"
        )
        ensure_tenant_role()
        for table, (privileges, rows) in _TENANT_MAY.items():
            row_policy(table, privileges, rows)
        for table in _CLOSED:
            close_to_tenants(table)
        ensure_search_extensions()
        for table, columns in _SEARCHED.items():
            create_search(table, columns)


def downgrade() -> None:
    unprotect_audit_log()
    if op.get_bind().dialect.name == "postgresql":
        # At once: the policies of some tables refer to others.
        op.execute(f"DROP TABLE {', '.join(_TABLES)}")
        for table in _SEARCHED:
            drop_search(table)
        return
    for table in reversed(_TABLES):
        op.drop_table(table)


def _create_tables() -> None:
    op.create_table(
        "installations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installations")),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), server_default="starter", nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("requests_per_hour", sa.Integer(), nullable=True),
        sa.Column("event_sequence", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "plan IN ('starter', 'professional', 'enterprise')", name=op.f("ck_organizations_plan")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("slug", name=op.f("uq_organizations_slug")),
    )
    op.create_table(
        "rate_windows",
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("seconds", sa.Integer(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("spent", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "seconds", name=op.f("pk_rate_windows")),
    )
    op.create_index(op.f("ix_rate_windows_started_at"), "rate_windows", ["started_at"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("token_digest", sa.String(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.Column("last_used_at", _TIME, nullable=True),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.CheckConstraint("level IN ('read', 'write', 'delete', 'admin')", name=op.f("ck_api_keys_level")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_api_keys_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_id", name=op.f("uq_api_keys_key_id")),
    )
    op.create_index(op.f("ix_api_keys_organization_id"), "api_keys", ["organization_id"], unique=False)
    op.create_table(
        "audit_heads",
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("previous_hash", sa.String(), server_default="0" * 64, nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_audit_heads_organization_id")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_audit_heads")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("actor_type", sa.String(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("before", _JSON, nullable=True),
        sa.Column("after", _JSON, nullable=True),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_audit_log_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sa.UniqueConstraint(
            "organization_id", "sequence", name=op.f("uq_audit_log_organization_id_sequence")
        ),
    )
    op.create_index(
        "ix_audit_log_listing", "audit_log", ["organization_id", "created_at", "id"], unique=False
    )
    op.create_index(
        "ix_audit_log_resource", "audit_log", ["organization_id", "resource_id", "created_at"], unique=False
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_events_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("organization_id", "sequence", name=op.f("uq_events_organization_id_sequence")),
    )
    op.create_index(op.f("ix_events_resource_id"), "events", ["resource_id"], unique=False)
    op.create_table(
        "idempotency_records",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("sealed_answer", sa.String(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_idempotency_records_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotency_records")),
        sa.UniqueConstraint(
            "organization_id", "key", name=op.f("uq_idempotency_records_organization_id_key")
        ),
    )
    op.create_index(
        op.f("ix_idempotency_records_expires_at"), "idempotency_records", ["expires_at"], unique=False
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("workflow_id", sa.String(), nullable=False),
        sa.Column("resource_name", sa.String(), nullable=False),
        sa.Column("resource_slug", sa.String(), nullable=False),
        sa.Column("parameters", _JSON, nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.String(), nullable=True),
        sa.Column("requested_by", sa.Uuid(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("stalled_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'succeeded', 'failed', 'cancelling', 'cancelled')",
            name=op.f("ck_operations_state"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_operations_organization_id")
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["operations.id"], name=op.f("fk_operations_parent_id")),
        sa.ForeignKeyConstraint(["retry_of"], ["operations.id"], name=op.f("fk_operations_retry_of")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    op.create_index(
        "ix_operations_listing", "operations", ["organization_id", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_operations_parent_id"), "operations", ["parent_id"], unique=False)
    op.create_index("ix_operations_resource", "operations", ["resource_id", "created_at"], unique=False)
    op.create_index("ix_operations_state", "operations", ["state", "created_at"], unique=False)
    op.create_table(
        "providers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("sealed_credentials", sa.String(), nullable=False),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_providers_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_providers")),
    )
    op.create_index(
        "uq_providers_organization_id_name",
        "providers",
        ["organization_id", "name"],
        unique=True,
        **_where("deleted_at IS NULL"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("email_verified_at", _TIME, nullable=True),
        sa.Column("home_organization_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=True),
        sa.Column("password_changed_at", _TIME, nullable=True),
        sa.Column("disabled_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "(email_verified_at IS NULL) = (home_organization_id IS NOT NULL)", name=op.f("ck_users_home")
        ),
        sa.ForeignKeyConstraint(
            ["home_organization_id"], ["organizations.id"], name=op.f("fk_users_home_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    op.create_index(
        "uq_users_unverified_email",
        "users",
        ["email", "home_organization_id"],
        unique=True,
        **_where("email_verified_at IS NULL"),
    )
    op.create_index(
        "uq_users_verified_email", "users", ["email"], unique=True, **_where("email_verified_at IS NOT NULL")
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("types", _JSON, nullable=False),
        sa.Column("format", sa.String(), server_default="raw", nullable=False),
        sa.Column("header_names", _JSON, server_default="[]", nullable=False),
        sa.Column("sealed_headers", sa.String(), nullable=True),
        sa.Column("sealed_secret", sa.String(), nullable=False),
        sa.Column("sealed_old_secret", sa.String(), nullable=True),
        sa.Column("old_secret_until", _TIME, nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("failing_since", _TIME, nullable=True),
        sa.Column("awake", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("unseen_change", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "format IN ('raw', 'slack', 'teams', 'discord')", name=op.f("ck_webhook_endpoints_format")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_webhook_endpoints_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(
        op.f("ix_webhook_endpoints_organization_id"), "webhook_endpoints", ["organization_id"], unique=False
    )
    op.create_table(
        "identities",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_identities_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_identities_issuer_subject")),
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"], unique=False)
    op.create_table(
        "members",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'developer', 'billing', 'viewer')", name=op.f("ck_members_role")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_members_organization_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_members_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_members")),
        sa.UniqueConstraint("organization_id", "user_id", name=op.f("uq_members_organization_id_user_id")),
    )
    op.create_index(op.f("ix_members_user_id"), "members", ["user_id"], unique=False)
    op.create_table(
        "operation_holds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("status_before", sa.String(), nullable=False),
        sa.CheckConstraint("mode IN ('exclusive', 'shared')", name=op.f("ck_operation_holds_mode")),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_operation_holds_operation_id")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_operation_holds_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation_holds")),
    )
    op.create_index(
        op.f("ix_operation_holds_operation_id"), "operation_holds", ["operation_id"], unique=False
    )
    op.create_index("ix_operation_holds_resource_id", "operation_holds", ["resource_id"], unique=False)
    op.create_index(
        "uq_operation_holds_exclusive_resource_id",
        "operation_holds",
        ["resource_id"],
        unique=True,
        **_where("mode = 'exclusive'"),
    )
    op.create_table(
        "operation_steps",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("first_failed_at", _TIME, nullable=True),
        sa.Column("next_attempt_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'succeeded', 'failed')", name=op.f("ck_operation_steps_state")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_operation_steps_operation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation_steps")),
        sa.UniqueConstraint(
            "operation_id", "name", "run", name=op.f("uq_operation_steps_operation_id_name_run")
        ),
    )
    op.create_index(
        "ix_operation_steps_running",
        "operation_steps",
        ["updated_at"],
        unique=False,
        **_where("state = 'running'"),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("family_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("token_digest", sa.String(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME, nullable=True),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_refresh_tokens_organization_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_refresh_tokens_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refresh_tokens")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_refresh_tokens_token_digest")),
    )
    op.create_index(op.f("ix_refresh_tokens_expires_at"), "refresh_tokens", ["expires_at"], unique=False)
    op.create_index(op.f("ix_refresh_tokens_family_id"), "refresh_tokens", ["family_id"], unique=False)
    op.create_index(op.f("ix_refresh_tokens_user_id"), "refresh_tokens", ["user_id"], unique=False)
    op.create_table(
        "servers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("provider_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("size", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=True),
        sa.Column("image", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_message", sa.String(), nullable=True),
        sa.Column("state_changed_at", _TIME, nullable=False),
        sa.Column("health", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("ssh_port", sa.Integer(), nullable=False),
        sa.Column("http_port", sa.Integer(), nullable=False),
        sa.Column("https_port", sa.Integer(), nullable=False),
        sa.Column("host_key", sa.String(), nullable=True),
        sa.Column("sealed_host_private_key", sa.String(), nullable=True),
        sa.Column("sealed_login_private_key", sa.String(), nullable=True),
        sa.Column("engine_version", sa.String(), nullable=True),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "health IN ('healthy', 'degraded', 'unhealthy', 'unknown')", name=op.f("ck_servers_health")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'provisioning', 'running', 'stopping', 'stopped', 'starting', 'restarting', 'deleting', 'deleted', 'failed', 'unreachable')",
            name=op.f("ck_servers_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_servers_organization_id")
        ),
        sa.ForeignKeyConstraint(["provider_id"], ["providers.id"], name=op.f("fk_servers_provider_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servers")),
    )
    op.create_index(
        "ix_servers_listing",
        "servers",
        ["organization_id", "created_at", "id"],
        unique=False,
        **_where("deleted_at IS NULL"),
    )
    op.create_index(op.f("ix_servers_provider_id"), "servers", ["provider_id"], unique=False)
    op.create_index(
        "uq_servers_organization_id_name",
        "servers",
        ["organization_id", "name"],
        unique=True,
        **_where("status <> 'deleted'"),
    )
    op.create_table(
        "set_password_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("token_digest", sa.String(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_set_password_tokens_organization_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_set_password_tokens_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_set_password_tokens")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_set_password_tokens_token_digest")),
        sa.UniqueConstraint("user_id", name=op.f("uq_set_password_tokens_user_id")),
    )
    op.create_index(
        op.f("ix_set_password_tokens_expires_at"), "set_password_tokens", ["expires_at"], unique=False
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("attempts_before", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", _TIME, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'succeeded', 'failed')", name=op.f("ck_webhook_deliveries_state")
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_webhook_deliveries_endpoint_id")
        ),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_webhook_deliveries_event_id")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_webhook_deliveries_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint(
            "endpoint_id", "event_id", name=op.f("uq_webhook_deliveries_endpoint_id_event_id")
        ),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_id", "next_attempt_at", "id"],
        unique=False,
        **_where("state = 'pending'"),
    )
    op.create_index(op.f("ix_webhook_deliveries_event_id"), "webhook_deliveries", ["event_id"], unique=False)
    op.create_index(
        "ix_webhook_deliveries_listing",
        "webhook_deliveries",
        ["organization_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("server_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("odoo_version", sa.String(), nullable=False),
        sa.Column("odoo_edition", sa.String(), nullable=False),
        sa.Column("environment_type", sa.String(), nullable=False),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_message", sa.String(), nullable=True),
        sa.Column("state_changed_at", _TIME, nullable=False),
        sa.Column("health", sa.String(), nullable=False),
        sa.Column("desired_state", sa.String(), server_default="running", nullable=False),
        sa.Column("sealed_env_vars", sa.String(), nullable=False),
        sa.Column("sealed_database_password", sa.String(), nullable=False),
        sa.Column("sealed_master_password", sa.String(), nullable=False),
        sa.Column("sealed_admin_password", sa.String(), nullable=True),
        sa.Column("deployed_at", _TIME, nullable=True),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "health IN ('healthy', 'degraded', 'unhealthy', 'unknown')", name=op.f("ck_instances_health")
        ),
        sa.CheckConstraint(
            "desired_state IN ('running', 'stopped')", name=op.f("ck_instances_desired_state")
        ),
        sa.CheckConstraint(
            "environment_type IN ('production', 'staging', 'development')",
            name=op.f("ck_instances_environment_type"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'deploying', 'running', 'stopping', 'stopped', 'starting', 'restarting', 'updating', 'restoring', 'deleting', 'deleted', 'failed')",
            name=op.f("ck_instances_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_instances_organization_id")
        ),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name=op.f("fk_instances_server_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
    )
    op.create_index(
        "ix_instances_by_server",
        "instances",
        ["organization_id", "server_id", "created_at", "id"],
        unique=False,
        **_where("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_instances_by_status",
        "instances",
        ["organization_id", "status", "created_at", "id"],
        unique=False,
        **_where("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_instances_listing",
        "instances",
        ["organization_id", "created_at", "id"],
        unique=False,
        **_where("deleted_at IS NULL"),
    )
    op.create_index(op.f("ix_instances_server_id"), "instances", ["server_id"], unique=False)
    op.create_index(
        "uq_instances_hostname", "instances", ["hostname"], unique=True, **_where("status <> 'deleted'")
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("response_excerpt", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["webhook_deliveries.id"], name=op.f("fk_webhook_attempts_delivery_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
        sa.UniqueConstraint("delivery_id", "number", name=op.f("uq_webhook_attempts_delivery_id_number")),
    )

    op.create_table(
        "releases",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("colour", sa.String(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("postgres_image", sa.String(), nullable=True),
        sa.Column("postgres_digest", sa.String(), nullable=True),
        sa.Column("odoo_image", sa.String(), nullable=True),
        sa.Column("odoo_digest", sa.String(), nullable=True),
        sa.CheckConstraint("colour IN ('blue', 'green')", name=op.f("ck_releases_colour")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_releases_organization_id")
        ),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_releases_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_releases")),
    )
    op.create_index(op.f("ix_releases_instance_id"), "releases", ["instance_id"], unique=False)
    op.create_index(
        "uq_releases_active_instance_id", "releases", ["instance_id"], unique=True, **_where("is_active")
    )


_TABLES = (
    "installations",
    "organizations",
    "rate_windows",
    "api_keys",
    "audit_heads",
    "audit_log",
    "events",
    "idempotency_records",
    "operations",
    "providers",
    "users",
    "webhook_endpoints",
    "identities",
    "members",
    "operation_holds",
    "operation_steps",
    "refresh_tokens",
    "servers",
    "set_password_tokens",
    "webhook_deliveries",
    "instances",
    "webhook_attempts",
    "releases",
)
