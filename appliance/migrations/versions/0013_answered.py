"""When a destination last answered about each object."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    answered = sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True)
    op.add_column("delivered_object", answered)


def downgrade() -> None:
    op.drop_column("delivered_object", "answered_at")
