"""What people confirmed; it refuses every change by trigger, and goes with its study alone."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FINAL = {
    "sqlite": [
        """
        CREATE TRIGGER review_no_update BEFORE UPDATE ON review
        BEGIN SELECT RAISE(ABORT, 'a review is never changed'); END
        """
    ],
    "postgresql": [
        """
        CREATE FUNCTION review_is_final() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'a review is never changed'; END $$
        """,
        """
        CREATE TRIGGER review_final
        BEFORE UPDATE ON review
        FOR EACH STATEMENT EXECUTE FUNCTION review_is_final()
        """,
    ],
}


def upgrade() -> None:
    op.create_table(
        "review",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("reason_text", sa.Text(), nullable=False),
        sa.Column("rejected", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "reason IN ('small lesion missed', 'lesion missed', 'other pneumonia',"
            " 'several kinds of lesion', 'artefact', 'normal anatomy', 'other')",
            name="ck_review_reason",
        ),
        sa.CheckConstraint("version > 0", name="ck_review_version"),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_review_analysis_id_analysis"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name="fk_review_account_id_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_review"),
        sa.UniqueConstraint("analysis_id", "version", name="uq_review_analysis_id_version"),
    )
    for statement in FINAL[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("review")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION review_is_final()")
