"""How many lesions people added and outlined anew."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("added_count", "corrected_count"):
        op.add_column("quality_record", sa.Column(name, sa.Integer(), nullable=True))


def downgrade() -> None:
    for name in ("corrected_count", "added_count"):
        op.drop_column("quality_record", name)
