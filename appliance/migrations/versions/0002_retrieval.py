"""What is asked of other nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retrieval",
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
        sa.CheckConstraint(
            "why IN ('standing query', 'prior', 'new study')", name="ck_retrieval_why"
        ),
        sa.CheckConstraint(
            "state IN ('WAITING', 'RUNNING', 'DONE', 'FAILED')", name="ck_retrieval_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_retrieval"),
        sa.UniqueConstraint(
            "destination", "aim", "study_uid", name="uq_retrieval_destination_aim_study_uid"
        ),
    )
    op.create_index(
        "ix_retrieval_state_next_try_at", "retrieval", ["state", "next_try_at"], unique=False
    )
    op.create_index("ix_retrieval_study_uid", "retrieval", ["study_uid"], unique=False)


def downgrade() -> None:
    op.drop_table("retrieval")
