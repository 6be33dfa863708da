"""What the objects of an analysis are named by, since the first of them were made."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("analysis", sa.Column("origin", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("analysis", "origin")
