"""Retrievals that a person asks for, and what people ask other nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WHY = "why IN ('standing query', 'prior', 'new study', 'by hand')"


def upgrade() -> None:
    _allow(WHY)
    op.create_table(
        "remote_query",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("keys", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("cut_off", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('WAITING', 'RUNNING', 'DONE', 'FAILED')", name="ck_remote_query_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_remote_query"),
    )


def downgrade() -> None:
    op.drop_table("remote_query")
    op.execute("DELETE FROM retrieval WHERE why = 'by hand'")
    _allow("why IN ('standing query', 'prior', 'new study')")


def _allow(why: str) -> None:
    """Replace the reasons that a retrieval may have."""
    if op.get_bind().dialect.name == "sqlite":
        # The table is made anew, and not every SQLAlchemy reads checks from it.
        with op.batch_alter_table("retrieval", recreate="always", copy_from=_retrieval(why)):
            pass
    else:
        op.drop_constraint("ck_retrieval_why", "retrieval", type_="check")
        op.create_check_constraint("ck_retrieval_why", "retrieval", why)


def _retrieval(why: str) -> sa.Table:
    return sa.Table(
        "retrieval",
        sa.MetaData(),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("aim", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_problem", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("aim IN ('study', 'priors')", name="ck_retrieval_aim"),
        sa.CheckConstraint(why, name="ck_retrieval_why"),
        sa.CheckConstraint(
            "state IN ('WAITING', 'RUNNING', 'DONE', 'FAILED')", name="ck_retrieval_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_retrieval"),
        sa.UniqueConstraint(
            "destination", "aim", "study_uid", name="uq_retrieval_destination_aim_study_uid"
        ),
        sa.Index("ix_retrieval_state_next_try_at", "state", "next_try_at"),
        sa.Index("ix_retrieval_study_uid", "study_uid"),
    )
