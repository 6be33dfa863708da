"""Alembic's entry: the migrations on the connection that `database.upgrade` opened."""

from typing import Any, Literal

from alembic import context

from appliance import tables
from appliance.database import Base


def render_item(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Write our UTC column as what it is in the database, so that migrations import no code."""
    if kind == "type" and type(item).__name__ == "UTCDateTime":
        return "sa.DateTime(timezone=True)"
    return False


# Importing the tables is what fills the metadata.
assert tables.STATES
connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=connection.dialect.name == "sqlite",
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
