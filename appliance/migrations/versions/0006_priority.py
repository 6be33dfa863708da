"""Which studies are urgent, and what rules need to know of their series."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The previous release writes none of these columns: hence the defaults of the database. The rule
# comes with its column, for SQLite would have to make the table anew to get it afterwards.
PRIORITY = (
    "ALTER TABLE study ADD COLUMN priority TEXT DEFAULT 'ROUTINE' NOT NULL"
    " CONSTRAINT ck_study_priority CHECK (priority IN ('ROUTINE', 'URGENT'))"
)
OF_SERIES = ("station_name", "protocol_name", "requested_priority")


def upgrade() -> None:
    op.execute(PRIORITY)
    op.add_column("study", sa.Column("priority_reason", sa.Text(), nullable=True))
    for name in OF_SERIES:
        op.add_column("series", sa.Column(name, sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    for name in OF_SERIES:
        op.drop_column("series", name)
    op.drop_column("study", "priority_reason")
    op.drop_column("study", "priority")
