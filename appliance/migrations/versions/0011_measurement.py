"""What people measured on images."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "measurement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("plane", sa.Text(), nullable=False),
        sa.Column("points", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('distance', 'angle', 'ellipse', 'probe', 'arrow')", name="ck_measurement_kind"
        ),
        sa.ForeignKeyConstraint(
            ["analysis_id"], ["analysis.id"], name="fk_measurement_analysis_id_analysis"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name="fk_measurement_account_id_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_measurement"),
        sa.UniqueConstraint(
            "analysis_id", "account_id", "key", name="uq_measurement_analysis_id_account_id_key"
        ),
    )


def downgrade() -> None:
    op.drop_table("measurement")
