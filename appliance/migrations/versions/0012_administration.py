"""What is counted and followed over time, and further questions to the DICOM worker."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "series", sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute(
        "UPDATE series SET size_bytes = (SELECT COALESCE(SUM(instance.size_bytes), 0)"
        " FROM instance WHERE instance.series_id = series.id)"
    )
    op.add_column("analysis", sa.Column("lung_hu", sa.Double(), nullable=True))
    # With its check, which alembic would give SQLite by making the table anew.
    op.execute(
        "ALTER TABLE remote_query ADD COLUMN kind TEXT DEFAULT 'studies' NOT NULL"
        " CONSTRAINT ck_remote_query_kind CHECK (kind IN ('studies', 'echo', 'rules'))"
    )
    op.create_table(
        "tally",
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "labels", name="pk_tally"),
    )
    op.create_table(
        "quality_record",
        sa.Column("analysis_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("source_ae", "manufacturer", "model", "kernel")
        ),
        *(
            sa.Column(name, sa.Double(), nullable=True)
            for name in ("slice_spacing_mm", "lung_hu", "noise_hu", "burden", "probability")
        ),
        sa.Column("positive", sa.Boolean(), nullable=True),
        sa.Column("lesion_count", sa.Integer(), nullable=False),
        sa.Column("review", sa.Integer(), nullable=False),
        sa.Column("overridden", sa.Boolean(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("rejected_count", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("analysis_id", name="pk_quality_record"),
    )
    op.create_index("ix_quality_record_at", "quality_record", ["at"])


def downgrade() -> None:
    op.drop_table("quality_record")
    op.drop_table("tally")
    op.execute("DELETE FROM remote_query WHERE kind <> 'studies'")
    op.drop_column("remote_query", "kind")
    op.drop_column("analysis", "lung_hu")
    op.drop_column("series", "size_bytes")
