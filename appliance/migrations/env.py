"""Alembic's entry: runs the migrations on the connection that `appliance.database.upgrade` opened."""

from typing import Any

from alembic import context

from appliance import tables


def render_item(kind: str, item: Any, autogen_context: Any) -> str | bool:
    """Write our UTC column as what it is in the database, so that migrations import no code."""
    if kind == "type" and type(item).__name__ == "UTCDateTime":
        return "sa.DateTime(timezone=True)"
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=tables.Base.metadata,
    compare_type=True,
    render_as_batch=connection.dialect.name == "sqlite",
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
