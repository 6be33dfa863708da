"""What is sent to other nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "occasion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=True),
        sa.Column("moment", sa.Text(), nullable=False),
        sa.Column("review", sa.Integer(), nullable=False),
        sa.Column("considered", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("moment IN ('analysed', 'confirmed')", name="ck_occasion_moment"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_occasion_study_id_study"),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_occasion_analysis_id_analysis"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_occasion"),
    )
    op.create_index("ix_occasion_study_id", "occasion", ["study_id"], unique=False)
    op.create_index(
        "ix_occasion_open",
        "occasion",
        ["id"],
        unique=False,
        sqlite_where=sa.text("NOT considered"),
        postgresql_where=sa.text("NOT considered"),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=True),
        sa.Column("review", sa.Integer(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("repetition", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_problem", sa.Text(), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('dicom', 'message')", name="ck_delivery_kind"),
        sa.CheckConstraint(
            "state IN ('WAITING', 'SENDING', 'SENT', 'COMMITTED', 'FAILED', 'DROPPED')",
            name="ck_delivery_state",
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_delivery_study_id_study"),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_delivery_analysis_id_analysis"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint(
            "analysis_id",
            "destination",
            "what",
            "review",
            "repetition",
            name="uq_delivery_analysis_id_destination_what_review_repetition",
        ),
    )
    op.create_index("ix_delivery_study_id", "delivery", ["study_id"], unique=False)
    op.create_index(
        "ix_delivery_state_next_try_at", "delivery", ["state", "next_try_at"], unique=False
    )
    op.create_index(
        "uq_delivery_rejected",
        "delivery",
        ["study_id", "revision", "destination", "what", "repetition"],
        unique=True,
        sqlite_where=sa.text("analysis_id IS NULL"),
        postgresql_where=sa.text("analysis_id IS NULL"),
    )
    op.create_table(
        "delivered_object",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('WAITING', 'SENT', 'COMMITTED', 'REFUSED')",
            name="ck_delivered_object_state",
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name="fk_delivered_object_delivery_id_delivery"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_delivered_object"),
        sa.UniqueConstraint(
            "delivery_id",
            "sop_instance_uid",
            name="uq_delivered_object_delivery_id_sop_instance_uid",
        ),
    )
    op.create_index(
        "ix_delivered_object_sop_instance_uid",
        "delivered_object",
        ["sop_instance_uid"],
        unique=False,
    )
    op.create_table(
        "commitment_transaction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name="fk_commitment_transaction_delivery_id_delivery"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_commitment_transaction"),
        sa.UniqueConstraint("transaction_uid", name="uq_commitment_transaction_transaction_uid"),
    )
    op.create_index(
        "ix_commitment_transaction_delivery_id",
        "commitment_transaction",
        ["delivery_id"],
        unique=False,
    )


def downgrade() -> None:
    for table in ("commitment_transaction", "delivered_object", "delivery", "occasion"):
        op.drop_table(table)
