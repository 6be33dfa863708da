"""What people set for themselves, and an index by which the studies that one opened are found."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OPENED = "ix_audit_entry_tag_actor"


def upgrade() -> None:
    op.create_table(
        "preference",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_preference_account_id_account")
        ),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_preference")),
    )
    op.create_index(OPENED, "audit_entry", ["tag", "actor"])


def downgrade() -> None:
    op.drop_index(OPENED, table_name="audit_entry")
    op.drop_table("preference")
