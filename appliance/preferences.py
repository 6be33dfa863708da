"""What a person set for themselves: small values by name, kept with the account."""

from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from appliance.tables import Preference


def get(db: Session, account_id: int, key: str) -> Any:
    """The value under a name; None where there is none."""
    return db.scalar(select(Preference.value).filter_by(account_id=account_id, key=key))


def put(db: Session, account_id: int, key: str, value: Any) -> None:
    """Keep a value that JSON can hold under a name, in place of another; None keeps nothing."""
    if value is None:
        db.execute(delete(Preference).filter_by(account_id=account_id, key=key))
        return
    dialect = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
    kept = dialect.insert(Preference).values(account_id=account_id, key=key, value=value)
    in_its_place = kept.on_conflict_do_update(
        index_elements=["account_id", "key"], set_={"value": kept.excluded.value}
    )
    db.execute(in_its_place)
