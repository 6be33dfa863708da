"""What people mark on the images, the signs they see, and what they have not confirmed yet."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("review", sa.Column("marks", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("review", sa.Column("signs", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "marked_region",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("box", sa.JSON(), nullable=False),
        sa.Column("bits", sa.LargeBinary(), nullable=False),
        sa.Column("measures", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_marked_region_analysis_id_analysis"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name="fk_marked_region_account_id_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_marked_region"),
        sa.UniqueConstraint(
            "analysis_id",
            "account_id",
            "digest",
            name="uq_marked_region_analysis_id_account_id_digest",
        ),
    )
    op.create_table(
        "review_draft",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("judged", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("revision > 0", name="ck_review_draft_revision"),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_review_draft_analysis_id_analysis"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name="fk_review_draft_account_id_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_review_draft"),
        sa.UniqueConstraint(
            "analysis_id", "account_id", name="uq_review_draft_analysis_id_account_id"
        ),
    )


def downgrade() -> None:
    judged = sa.text(
        "SELECT count(*) FROM review"
        " WHERE CAST(marks AS TEXT) <> '[]' OR CAST(signs AS TEXT) <> '{}'"
    )
    if op.get_bind().scalar(judged):
        raise RuntimeError(
            "Confirmed reviews hold lesions or signs that the release before cannot keep:"
            " stay with this release."
        )
    op.drop_table("review_draft")
    op.drop_table("marked_region")
    op.drop_column("review", "signs")
    op.drop_column("review", "marks")
