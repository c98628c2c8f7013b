"""Passwords are chosen by their users, and only verified e-mail addresses are unique"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_VERIFIED, _UNVERIFIED = sa.text("email_verified_at IS NOT NULL"), sa.text("email_verified_at IS NULL")
_CHECK = "(email_verified_at IS NULL) = (home_organization_id IS NOT NULL)"
# What refers to users, and nothing refers to: SQLite makes the table of users anew, and takes no reference
# to a table that it drops.
_REFERRING = ("members", "identities", "refresh_tokens")


def upgrade() -> None:
    _create_tokens()
    for name, kind in (
        ("email_verified_at", _TIME),
        ("home_organization_id", sa.Uuid()),
        ("password_changed_at", _TIME),
    ):
        op.add_column("users", sa.Column(name, kind, nullable=True))
    # An admin of an organization could make a user of any address. The operator has vouched for owners whom
    # `deployerp bootstrap` has made; who belongs to several organizations has no single home.
    op.execute(
        """
        UPDATE users SET home_organization_id = (
            SELECT organization_id FROM members WHERE members.user_id = users.id
        )
        WHERE (SELECT count(*) FROM members WHERE members.user_id = users.id) = 1
        AND NOT EXISTS (
            SELECT 1 FROM audit_log WHERE audit_log.resource_id = users.id
            AND audit_log.action = 'create_user' AND audit_log.actor_type = 'system'
        )
        """
    )
    op.execute("UPDATE users SET email_verified_at = created_at WHERE home_organization_id IS NULL")
    kept = _take_referring_away()
    with op.batch_alter_table("users") as batch:
        batch.drop_constraint(op.f("uq_users_email"), type_="unique")
        batch.create_check_constraint(op.f("ck_users_home"), _CHECK)
        batch.create_foreign_key(
            op.f("fk_users_home_organization_id"), "organizations", ["home_organization_id"], ["id"]
        )
    _bring_referring_back(kept)
    op.create_index(
        "uq_users_verified_email",
        "users",
        ["email"],
        unique=True,
        sqlite_where=_VERIFIED,
        postgresql_where=_VERIFIED,
    )
    op.create_index(
        "uq_users_unverified_email",
        "users",
        ["email", "home_organization_id"],
        unique=True,
        sqlite_where=_UNVERIFIED,
        postgresql_where=_UNVERIFIED,
    )


def downgrade() -> None:
    op.drop_table("set_password_tokens")
    op.drop_index("uq_users_unverified_email", "users")
    op.drop_index("uq_users_verified_email", "users")
    kept = _take_referring_away()
    with op.batch_alter_table("users") as batch:
        batch.drop_constraint(op.f("fk_users_home_organization_id"), type_="foreignkey")
        batch.drop_constraint(op.f("ck_users_home"), type_="check")
        for name in ("password_changed_at", "home_organization_id", "email_verified_at"):
            batch.drop_column(name)
        # It fails where users share an address: somebody must decide which of them stays.
        batch.create_unique_constraint(op.f("uq_users_email"), ["email"])
    _bring_referring_back(kept)


def _create_tokens() -> None:
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
    if op.get_bind().dialect.name == "postgresql":
        # As in 0003, of the tables that no tenant has any business with.
        op.execute("ALTER TABLE set_password_tokens ENABLE ROW LEVEL SECURITY")
        op.execute("ALTER TABLE set_password_tokens FORCE ROW LEVEL SECURITY")
        op.execute(
            "CREATE POLICY control_plane ON set_password_tokens TO CURRENT_USER"
            " USING (true) WITH CHECK (true)"
        )


def _take_referring_away() -> tuple[str, ...]:
    if op.get_bind().dialect.name != "sqlite":
        return ()
    for table in _REFERRING:
        op.execute(f"CREATE TEMPORARY TABLE kept_{table} AS SELECT * FROM {table}")  # noqa: S608
        op.execute(f"DELETE FROM {table}")  # noqa: S608  (the names are ours)
    return _REFERRING


def _bring_referring_back(tables: tuple[str, ...]) -> None:
    for table in tables:
        op.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")  # noqa: S608
        op.execute(f"DROP TABLE kept_{table}")
