"""More roles, first passwords, people of an identity provider, sessions, and a searchable audit."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BEFORE = "role IN ('radiologist', 'administrator', 'viewer')"
ROLES = (
    "role IN ('radiologist', 'senior radiologist', 'annotator', 'inspector', 'administrator',"
    " 'viewer')"
)
SEARCHED = ("actor", "at", "subject")


def upgrade() -> None:
    _allow(BEFORE, ROLES)
    # The previous release does not write it: hence the default of the database.
    op.add_column(
        "account",
        sa.Column("temporary", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column("account", sa.Column("external_id", sa.Text(), nullable=True))
    op.create_index("ix_account_external_id", "account", ["external_id"], unique=True)
    op.create_table(
        "web_session",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_digest", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("names_hidden", sa.Boolean(), nullable=False),
        sa.Column("failed_logins", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name="fk_web_session_account_id_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_web_session"),
        sa.UniqueConstraint("token_digest", name="uq_web_session_token_digest"),
    )
    op.create_index("ix_web_session_account_id", "web_session", ["account_id"])
    for column in SEARCHED:
        op.create_index(f"ix_audit_entry_{column}", "audit_entry", [column])


def downgrade() -> None:
    for column in SEARCHED:
        op.drop_index(f"ix_audit_entry_{column}", "audit_entry")
    op.drop_table("web_session")
    op.drop_index("ix_account_external_id", "account")
    op.drop_column("account", "external_id")
    op.drop_column("account", "temporary")
    # Nobody gets more rights by it.
    op.execute(f"UPDATE account SET role = 'viewer', active = false WHERE NOT ({BEFORE})")  # noqa: S608
    _allow(ROLES, BEFORE)


def _allow(before: str, after: str) -> None:
    """Replace the roles that an account may have."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        _rewrite(connection, before, after)
    else:
        op.drop_constraint("ck_account_role", "account", type_="check")
        op.create_check_constraint("ck_account_role", "account", after)


def _rewrite(connection: sa.Connection, before: str, after: str) -> None:
    """Change a check in SQLite's own description of the table.

    Making the table anew would break the rows that refer to it. This is what SQLite's manual gives
    for a change of checks (https://www.sqlite.org/lang_altertable.html#otheralter).
    """
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after)"
            " WHERE type = 'table' AND name = 'account' AND instr(sql, :before) > 0"
        ),
        {"before": before, "after": after},
    )
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
    if changed.rowcount != 1:
        raise RuntimeError("the table of accounts has not the roles of the release before")
